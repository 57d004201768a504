// Attention of a few queries against many keys: keys in lanes, split over the keys in fixed chunks
// that are merged in order. K and V are read once, where they lie.
#pragma once

#include "functional.h"

namespace multihead {

// Decided by the shape alone, as it decides the order of additions.
inline bool few_queries(const AttentionCall& call) {
  return call.q.size[2] <= 4 && call.k.size[2] >= 256;
}

void few_queries_forward(const AttentionCall& call, const View& out, const View& stats);

}  // namespace multihead
