// A layer's forward over cached keys and values: those of new tokens are written after them, then
// queries see all that there are.
#pragma once

#include "layer.h"

namespace multihead {

struct CachedCall {
  // Of the new tokens. attention.shape has as many keys as there will be at most, where each
  // sequence's first query stands among them, and how many keys each has afterwards.
  LayerCall layer;
  View k, v;  // (N, Hk, capacity, D), (N, Hk, capacity, Dv)
  // [batch]: of the first new token, for angles.
  const int64_t* positions = nullptr;
};

// Passes 2, 3, 4 and 5 of a layer: see layer.h.
void cached_forward(const CachedCall& call, const View& out, const WeightsView& weights);

}  // namespace multihead
