// Attention of a few queries against many keys: keys in lanes, split over the keys in fixed chunks
// that are merged in order. K and V are read once, where they lie.
#pragma once

#include "functional.h"

namespace multihead {

// Decided by the shape alone, as it decides the order of additions.
inline bool splits_keys(const AttentionCall& call) {
  const BatchShape& shape = call.attention.shape;
  return shape.queries <= 4 && shape.keys >= 256;
}

void split_keys_forward(const AttentionCall& call, const View& out, const View& stats);

}  // namespace multihead
