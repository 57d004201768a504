// The one place where a layer exists: every face translates to it. A call is prepared once; then it
// runs forward or backward, whose passes have the same numbers:
//
//   1 read the masks, 2 project query, key and value, 3 attend, 4 write the weights, 5 project out.
#pragma once

#include "call.h"
#include "projection.h"

namespace multihead {

// Views of the same axes whatever the memory looks like; absent ones have rank 0.
struct Parameters {
  HeadWeights query, key, value;  // (H, D, in), (H, D)
  View bias_k, bias_v;            // (Hk, D), (Hk, Dv)
  HeadWeights out;                // (H, Dv, E), and a bias (E)
  View sinks;                     // (H): the gradient alone; attention's rules hold them
};

struct LayerCall {
  AttentionSpec attention;
  Parameters parameters;
  View query, key, value;  // (N, tokens, features), ragged: (total, features)
  Resources resources;
};

struct LayerGradients {
  View query, key, value;  // set, or added to; equal views receive the sum
  bool query_adds = false, key_adds = false, value_adds = false;
  Parameters parameters;  // added to
  View key_padding;       // (N, S), set
  View mask;              // (1|N, 1|H, 1|L, 1|S), set
};

// Gives a call memory for what backward needs of forward, as many bytes as it is asked for: new
// memory in forward, what forward wrote in backward.
using CacheMemory = std::function<void*(size_t bytes)>;

template <class E>
class Layer {
 public:
  Layer(const LayerCall& call, const KernelSet& set);
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // Bytes of what backward needs of a forward.
  size_t cache_bytes();
  // Bytes of workspace, with a cache of the caller's or without, and whatever the threads.
  size_t forward_bytes(bool cached);
  size_t backward_bytes();

  // Writes out and weights where wanted, and a cache where there is memory for it.
  void forward(const View& out, const WeightsView& weights, const CacheMemory& cache);
  void backward(const CacheMemory& cache, const View& d_out, const WeightsView& d_weights,
                const LayerGradients& gradients);

 private:
  // Weights as the left factors of products, one way round in forward, the other in backward.
  struct Weights {
    PackedWeights<E> query, key, value, out;
  };
  using WeightGradients = std::vector<WeightGradient<E>>;

  void weights_for_forward();
  void weights_for_backward();
  void layout_weights(Arena& arena);
  void layout_cache(Arena& arena);
  void layout_forward(Arena& arena, Arena* kept);
  void layout_backward(Arena& arena);

  void read_masks();                                  // 1
  void read_masks_backward(const LayerGradients& d);  //
  void project_in();                                  // 2
  void project_in_backward(const LayerGradients& d,   //
                           const WeightGradients& of_weights, size_t first);
  void attend();                                   // 3
  void attend_backward();                          //
  void write_weights(const WeightsView& weights);  // 4
  void write_weights_backward();                   //
  void project_out(const View& out);               // 5
  void project_out_backward(const View& d_out);    //

  // Gradients of the inputs. What goes to an array that something went to before waits for that.
  void input_gradients(const LayerGradients& d, size_t first);
  WeightGradients weight_gradients(const LayerGradients& d, const View& d_out) const;
  bool one_input() const;        // whether queries and keys are the same tokens, tile by tile
  bool takes_sequences() const;  // one after another through several passes, in one task each

  const LayerCall& call_;
  PreparedCall<E> run_;
  std::vector<Phase>& phases_;
  const Projection<E> projection_;
  const bool by_sequence_;
  Weights weights_;
  AttentionTiles<E> tiles_;
  GradientTiles<E> gradients_;
};

// The same for a dtype that only the call knows.
size_t cache_bytes(const LayerCall& call);
size_t forward_bytes(const LayerCall& call, bool cached);
size_t backward_bytes(const LayerCall& call);
void layer_forward(const LayerCall& call, const View& out, const WeightsView& weights,
                   const CacheMemory& cache);
void layer_backward(const LayerCall& call, const CacheMemory& cache, const View& d_out,
                    const WeightsView& d_weights, const LayerGradients& gradients);

}  // namespace multihead
