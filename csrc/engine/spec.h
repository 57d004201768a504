// One description of attention, whoever asks for it: the heads, the batch, and what stands between
// q . k and the softmax. A new option is a field here and a room of its own in the engine.
#pragma once

#include "view.h"

namespace multihead {

struct Heads {
  int64_t count = 0, dim = 0, value_dim = 0;  // H, D, Dv
};

// How many sequences there are, and how long.
struct BatchShape {
  int64_t batch = 0, queries = 0, keys = 0;                        // of a ragged batch: the longest
  const int64_t *query_offsets = nullptr, *key_offsets = nullptr;  // ragged: [batch + 1]
  View key_padding;  // (N, S), hides where true or -inf
};

struct Dropout {
  double p = 0;
  uint64_t seed = 0, counter = 0;

  uint32_t threshold() const;  // weights whose 16 random bits are below it are dropped
  double keep_scale() const;   // 1 / (1 - p), of the p that the threshold stands for
};

// Where a part of a larger problem lies in the whole: added to local indices wherever a position
// matters, in causality and in dropout.
struct Offsets {
  int64_t batch = 0, head = 0, query = 0, key = 0;
};

struct ScoreRules {
  double scale = 0;
  bool causal = false;
  View mask;  // (N, H, L, S), stride 0 where shared: see score_axes
  bool true_hides = true;
  Dropout dropout;
  Offsets offsets;
};

struct AttentionSpec {
  DType dtype = DType::Float32;
  Heads heads;
  BatchShape shape;
  ScoreRules rules;
  bool bias_key = false, zero_row = false;  // keys after those of every sequence
};

// Masks (L, S), (N * H, L, S) or (1|N, 1|H, 1|L, 1|S) with the axes of the scores: (N, H, L, S),
// stride 0 where shared. Throws std::invalid_argument on any other shape.
View score_axes(const View& mask, const AttentionSpec& spec);

// The same axes, of which those that are shared keep size 1: what the gradient of a mask is.
View own_axes(const View& mask, const AttentionSpec& spec);

// Scores are in units of log2: q is scaled by this before its products.
template <class E>
E log2_scale(const ScoreRules& rules) {
  return E(double(E(rules.scale)) * 1.4426950408889634);
}

}  // namespace multihead
