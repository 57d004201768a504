// Attention alone, on query, key and value as they are: (N, H, L, D), (N, Hk, S, D), (N, Hk, S,
// Dv).
//
// It may be a part of a larger problem: offsets say where it lies, statistics and delta may come
// from the whole. stats is (2, N, H, L): the largest score in log2 units, and 1 / sum.
//
// Inputs are read and results written where they lie, tile by tile: no result may overlap an input.
//
// A ragged batch has its sequences one after another: L and S are the longest, sequence n begins at
// token query_offsets[n] or key_offsets[n] of every array, and N has stride 0.
#pragma once

#include "call.h"

namespace multihead {

struct AttentionCall {
  AttentionSpec attention;
  View q, k, v;
  Resources resources;
};

struct AttentionGradients {
  View q, k, v;  // set
  View mask;     // (1|N, 1|H, 1|L, 1|S), set
  View sinks;    // (H), set
};

void attention_forward(const AttentionCall& call, const View& out, const View& stats,
                       const WeightsView& weights);

// delta (N, H, L) = rowsum(d_out * out) over the whole problem, less the gradient of lse if it has
// one.
void attention_backward(const AttentionCall& call, const View& stats, const View& delta,
                        const View& d_out, const AttentionGradients& gradients);

// result (N, H, L) = rowsum(a * b) over the last axis.
void row_dot(const View& a, const View& b, const View& result);

}  // namespace multihead
