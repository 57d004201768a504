// What a face is told, by name: tensors and options of a call, in the axes that NumPy and PyTorch
// have, translated once into what the engine takes. Every shape is checked against every other, so
// that no input reaches past an array. No Python in it; any face fills the same structures.
#pragma once

#include "../engine/cached_layer.h"
#include "../engine/functional.h"
#include "../engine/layer.h"

namespace multihead::faces {

// The layer's inputs and parameters, or the gradients of these. Absent ones have rank 0; a value
// that is absent is the key, a key that is absent is the query.
struct LayerTensors {
  View query, key, value;             // (N, L, E), (L, N, E) or (L, E); ragged: (total, E)
  View padding;                       // (N, S) or (S)
  View mask;                          // see score_axes
  View in_weight;                     // (H D + 2 Hk D, E), or instead of it
  View q_weight, k_weight, v_weight;  // (H D, E), (Hk D, kdim), (Hk D, vdim)
  View in_bias;                       // (H D + 2 Hk D)
  View bias_k, bias_v;                // (1, 1, Hk D)
  View out_weight, out_bias;          // (E, H D), (E)
  View sinks;                         // (H)
  View alibi_slopes;                  // (H) or (N, H)
  View cosine, sine;                  // see Rotary
};

enum class Weights { None, Average, PerHead };

// `dtype` is what a call is computed in, and what its results are unless they say otherwise. Arrays
// may have another type: float32, float16 and bfloat16 go together.
struct LayerOptions {
  DType dtype = DType::Float32;
  int64_t num_heads = 0;
  int64_t key_heads = 0, head_dim = 0;  // 0: as many, and E / H
  bool zero_row = false, causal = false;
  Weights weights = Weights::None;
  bool tokens_first = false;  // (L, N, E)
  Dropout dropout;
  Offsets offsets;                              // for dropout
  double softcap = 0;                           // 0: none
  int64_t window_left = -1, window_right = -1;  // -1: no limit
  bool interleaved = false;                     // how features are paired
};

// Where the sequences of a ragged batch begin, (N + 1) each; null: it is dense.
struct RaggedOffsets {
  const int64_t *query = nullptr, *key = nullptr;
  int64_t batch = 0;
};

struct LayerArguments {
  LayerTensors tensors;
  LayerOptions options;
  RaggedOffsets offsets;
};

struct LayerResults {
  View out;      // like query
  View weights;  // (N, L, S') or (N, H, L, S'), without N or with a head of 1 too; ragged: flat
};

// What the functions below throw: "name: expected ..., got ...".
struct WrongArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// All throw WrongArgument. The call refers to the arguments.
LayerCall layer_call(const LayerArguments& arguments);
View layer_out(const LayerArguments& arguments, const LayerCall& call, const View& out);
WeightsView layer_weights(const LayerArguments& arguments, const LayerCall& call,
                          const View& weights);
LayerGradients layer_gradients(const LayerArguments& arguments, const LayerCall& call,
                               const LayerTensors& gradients);

// Keys and values that a layer's call adds to, and where each sequence's new ones go.
struct CachedKeys {
  View k, v;                           // (N, Hk, capacity, D)
  const int64_t* rows = nullptr;       // [N]: how many are filled
  const int64_t* positions = nullptr;  // [N]: how many tokens there were before
};

// The arguments' inputs are the new tokens; the call refers to `lengths` too, which it fills.
CachedCall cached_call(const LayerArguments& arguments, const CachedKeys& cache,
                       std::vector<int64_t>& lengths);

// The same for attention alone.
struct AttentionTensors {
  // (N, H, L, D), (N, Hk, S, D), (N, Hk, S, Dv); Hk divides H. Ragged: (total, H, D) and so on.
  View query, key, value;
  View mask;          // see score_axes
  View alibi_slopes;  // (H) or (N, H)
  View sinks;         // (H)
};

// Of each sequence, (N); null: its first query stands on its first key, and all its keys exist.
struct AttentionPositions {
  const int64_t *query = nullptr, *key_lengths = nullptr;
};

struct AttentionOptions {
  DType dtype = DType::Float32;
  bool true_hides = false, causal = false;
  double scale = 0;
  Dropout dropout;
  Offsets offsets;
  double softcap = 0;                           // 0: none
  int64_t window_left = -1, window_right = -1;  // -1: no limit
};

struct AttentionArguments {
  AttentionTensors tensors;
  AttentionOptions options;
  AttentionPositions positions;
  RaggedOffsets offsets;
};

// Of each query, as forward leaves them and backward takes them.
struct AttentionResults {
  View out;      // (N, H, L, Dv); ragged: (total, H, Dv)
  View stats;    // (2, N, H, L); ragged: (2, total, H)
  View weights;  // (N, H, L, S); not of a ragged batch
};

// What the engine takes: N, H and tokens are axes of all views.
AttentionCall attention_call(const AttentionArguments& arguments);
AttentionResults attention_results(const AttentionCall& call, const AttentionResults& results);
View attention_delta(const AttentionCall& call, const View& delta);  // (N, H, L) or (total, H)
AttentionGradients attention_gradients(const AttentionCall& call,
                                       const AttentionTensors& gradients);

// Products of rows: (N, H, L, D) twice, and (N, H, L); or (total, H, D) and (total, H).
struct RowDot {
  View a, b, result;
};
RowDot row_dot(const RowDot& arguments);

// Names of fields and where they are, for faces that get them in a row.
template <class S>
struct ViewField {
  const char* name;
  View S::* view;
};
inline constexpr ViewField<LayerTensors> kLayerTensors[] = {
    {"query", &LayerTensors::query},
    {"key", &LayerTensors::key},
    {"value", &LayerTensors::value},
    {"padding", &LayerTensors::padding},
    {"mask", &LayerTensors::mask},
    {"in_weight", &LayerTensors::in_weight},
    {"q_weight", &LayerTensors::q_weight},
    {"k_weight", &LayerTensors::k_weight},
    {"v_weight", &LayerTensors::v_weight},
    {"in_bias", &LayerTensors::in_bias},
    {"bias_k", &LayerTensors::bias_k},
    {"bias_v", &LayerTensors::bias_v},
    {"out_weight", &LayerTensors::out_weight},
    {"out_bias", &LayerTensors::out_bias},
    {"sinks", &LayerTensors::sinks},
    {"alibi_slopes", &LayerTensors::alibi_slopes},
    {"cosine", &LayerTensors::cosine},
    {"sine", &LayerTensors::sine},
};
inline constexpr ViewField<AttentionTensors> kAttentionTensors[] = {
    {"query", &AttentionTensors::query},
    {"key", &AttentionTensors::key},
    {"value", &AttentionTensors::value},
    {"mask", &AttentionTensors::mask},
    {"alibi_slopes", &AttentionTensors::alibi_slopes},
    {"sinks", &AttentionTensors::sinks},
};

}  // namespace multihead::faces
