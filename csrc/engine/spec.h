// One description of attention, whoever asks for it: the heads, the batch, and what stands between
// q . k and the softmax. A new option is a field here and a room of its own in the engine.
#pragma once

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

struct Heads {
  // H, Hk, D, Dv: a head of keys and values serves so many heads of queries side by side.
  int64_t count = 0, key_count = 0, dim = 0, value_dim = 0;

  int64_t group() const { return key_count > 0 ? count / key_count : 1; }
};

// How many sequences there are, and how long.
struct BatchShape {
  int64_t batch = 0, queries = 0, keys = 0;                        // of a ragged batch: the longest
  const int64_t *query_offsets = nullptr, *key_offsets = nullptr;  // ragged: [batch + 1]
  View key_padding;  // (N, S), hides where true or -inf
  // [batch]. Where the first query stands among the keys; null: at the first. Keys from there on do
  // not exist; null: all do.
  const int64_t *query_positions = nullptr, *key_lengths = nullptr;
};

struct Dropout {
  double p = 0;
  uint64_t seed = 0, counter = 0;
  bool shared = false;  // all sequences and heads drop the same

  uint32_t threshold() const;  // weights whose 16 random bits are below it are dropped
  double keep_scale() const;   // 1 / (1 - p), of the p that the threshold stands for
};

// Where a part of a larger problem lies in the whole: added to local indices wherever a position
// matters, in causality and in dropout.
struct Offsets {
  int64_t batch = 0, head = 0, query = 0, key = 0;
};

// In the order in which they act: scale, cap, ALiBi, mask, softmax with sinks, dropout.
struct ScoreRules {
  double scale = 0;
  double softcap = 0;  // s to softcap * tanh(s / softcap); 0: none
  View alibi_slopes;   // (N, H): adds -slope * |position of query - position of key|
  View sinks;          // (H): a score that joins the softmax and has no value
  bool causal = false;
  int64_t window_left = -1, window_right = -1;  // keys seen beside the query's own place; -1: all
  View mask;  // (N, H, L, S), stride 0 where shared: see score_axes
  bool true_hides = true;
  Dropout dropout;
  Offsets offsets;
};

// Angles of positions, by which a layer turns its queries and keys: pairs of features, the first
// with the one after it, or with the one half of all of them later.
struct Rotary {
  View cosine, sine;  // (pairs, positions), in what is computed in
  bool interleaved = false;

  int64_t pairs() const { return cosine ? cosine.size[0] : 0; }
};

struct AttentionSpec {
  DType dtype = DType::Float32;
  Heads heads;
  BatchShape shape;
  ScoreRules rules;
  Rotary rotary;                            // of layers
  bool bias_key = false, zero_row = false;  // keys after those of every sequence
};

// Throws std::invalid_argument where there are more sequences, tokens of one of them or heads than
// indices go, or more to compute than products of these sizes can count. Nothing that is done with
// sizes overflows after it.
void check_sizes(const AttentionSpec& spec);

// Masks (L, S), (N * H, L, S) or (1|N, 1|H, 1|L, 1|S) with the axes of the scores: (N, H, L, S),
// stride 0 where shared. Throws std::invalid_argument on any other shape.
View score_axes(const View& mask, const AttentionSpec& spec);

// The same axes, of which those that are shared keep size 1: what the gradient of a mask is.
View own_axes(const View& mask, const AttentionSpec& spec);

// Scores are in units of log2: q is scaled by this before its products.
constexpr double kLog2E = 1.4426950408889634;
template <class E>
E log2_scale(const ScoreRules& rules) {
  return E(double(E(rules.scale)) * kLog2E);
}

}  // namespace multihead
