// The one place where a layer exists: every face translates to these calls.
//
// forward:  1 read the masks, 2 project query, key and value, 3 attend, 4 project the output,
//           5 write the weights.
// backward: 4 the output's projection, 3 attention, 2 the projections of query, key and value,
//           1 the gradients of the masks.
#pragma once

#include "projection.h"

namespace multihead {

// Views of the same axes whatever the memory looks like; absent ones have rank 0.
struct Parameters {
  HeadWeights query, key, value;  // (H, D, in), (H, D)
  View bias_k, bias_v;            // (H, D), (H, Dv)
  HeadWeights out;                // (H, Dv, E), and a bias (E)
};

struct LayerCall {
  DType dtype = DType::Float32;
  Parameters parameters;
  bool zero_row = false;   // add_zero_attn
  View query, key, value;  // (N, tokens, features), ragged: (total, features)
  BatchShape shape;
  View attn_mask;  // (N, H, L, S), stride 0 where shared; true hides
  bool causal = false;
  Dropout dropout;
  Resources resources;
};

// Bytes of what backward needs of a forward.
size_t cache_bytes(const LayerCall& call);

// Writes out and weights where wanted. cache: cache_bytes of memory, or null.
void layer_forward(const LayerCall& call, const View& out, const WeightsView& weights, void* cache);

// Bytes of workspace that a forward needs, with a cache of the caller's or without, and whatever
// the threads.
size_t forward_bytes(const LayerCall& call, bool cached);

struct LayerGradients {
  View query, key, value;  // set, or added to; equal views receive the sum
  bool query_adds = false, key_adds = false, value_adds = false;
  Parameters parameters;  // added to
  View key_padding;       // (N, S), set
  View attn_mask;         // (1|N, 1|H, 1|L, 1|S), set
};

void layer_backward(const LayerCall& call, const void* cache, const View& d_out,
                    const WeightsView& d_weights, const LayerGradients& gradients);
size_t backward_bytes(const LayerCall& call);

}  // namespace multihead
