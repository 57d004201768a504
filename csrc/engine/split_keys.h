// Attention of a few queries against many keys: keys in lanes, split over the keys in fixed chunks
// that are merged in order. K and V are read once, where they lie.
#pragma once

#include "functional.h"

namespace multihead {

// Decided by the shape alone, as it decides the order of additions.
constexpr bool splits_keys(int64_t queries, int64_t keys) { return queries <= 4 && keys >= 256; }

// All sequences of a ragged batch have as many queries then: see sequence_runs.
inline bool splits_keys(const AttentionCall& call) {
  return splits_keys(call.attention.shape.queries, call.attention.shape.keys);
}

void split_keys_forward(const AttentionCall& call, const View& out, const View& stats);

}  // namespace multihead
