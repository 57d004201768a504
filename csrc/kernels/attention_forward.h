// Computes: out = v^T . softmax(k . q), one tile of keys at a time, queries in lanes.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// Online softmax over the rows of s: new maximum and sum, p = probabilities kept, and alpha, the
// factor by which everything summed before shrinks.
template <class T, int N, bool Masked>
MULTIHEAD_INLINE void softmax_step(const ForwardBlock<T>& t, int64_t lane, T* alpha) {
  constexpr int W = kWidth<T>;
  const Vec<T> lowest = splat(-kInfinity<T>);
  Vec<T> top[N], base[N], sum[N];
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) top[j] = t.first ? lowest : load(t.row_max + lane + j * W);
  for (int64_t r = 0; r < t.keys; ++r) {
    const T* s = t.s + r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      Vec<T> x = load(s + j * W);
      if (Masked) x = select(mask_of_bits<T>(t.visible[r], int(lane) + j * W), x, lowest);
      top[j] = maximum(x, top[j]);
    }
  }
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    base[j] = top[j] != lowest ? top[j] : Vec<T>{};
    if (t.first) {
      sum[j] = Vec<T>{};
    } else {
      const Vec<T> shrink = exp2<T>(load(t.row_max + lane + j * W) - base[j]);
      store(alpha + lane + j * W, shrink);
      sum[j] = load(t.row_sum + lane + j * W) * shrink;
    }
    store(t.row_max + lane + j * W, top[j]);
  }
  for (int64_t r = 0; r < t.keys; ++r) {
    const T* s = t.s + r * t.lanes + lane;
    T* to = t.p + r * t.lanes + lane;
    Vec<T> p[N];
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      p[j] = exp2<T>(load(s + j * W) - base[j]);
      if (Masked) p[j] = select(mask_of_bits<T>(t.visible[r], int(lane) + j * W), p[j], Vec<T>{});
      sum[j] += p[j];
    }
    if (t.keep) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < N; ++j)
        p[j] = select(mask_of_bits<T>(t.keep[r], int(lane) + j * W), p[j], Vec<T>{});
    }
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) store(to + j * W, p[j]);
  }
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) store(t.row_sum + lane + j * W, sum[j]);
}

template <class T>
void forward_block(const ForwardBlock<T>& t) {
  alignas(64) T alpha[kTile];
  scores<T>(t);
  if (t.visible) {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { softmax_step<T, N, true>(t, lane, alpha); });
    for (int64_t r = 0; r < t.keys; ++r) *t.seen |= t.visible[r];
  } else {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { softmax_step<T, N, false>(t, lane, alpha); });
    if (t.keys) *t.seen = ~uint64_t(0);
  }
  const bool guard = t.visible && !finite_rows<T>(t.v, t.key_lanes, t.value_dim, t.keys);
  Gemm<T> values{.m = t.value_dim,
                 .lanes = t.lanes,
                 .k = guard ? 0 : t.keys,
                 .a = {.data = t.v, .row = t.key_lanes, .k = 1},
                 .b = t.p,
                 .b_row = t.lanes,
                 .c = t.out,
                 .c_row = t.lanes,
                 .init = t.first ? Init::Zero : Init::LoadScaled,
                 .start = alpha,
                 .prefetch = t.prefetch};
  gemm<T>(values);
  if (!guard) return;
  values.k = t.keys;
  visible_lanes<T>(values, t.visible);
}

template <class T>
void forward_end(const ForwardBlock<T>& t, T keep_scale, T* out) {
  constexpr int W = kWidth<T>;
  for (int64_t lane = 0; lane < t.lanes; lane += W) {
    const Mask<T> seen = mask_of_bits<T>(*t.seen, int(lane));
    Vec<T> inverse{}, top = splat(kInfinity<T>);
    if (*t.seen) {
      inverse = select(seen, T(1) / load(t.row_sum + lane), Vec<T>{});
      top = select(seen, load(t.row_max + lane), top);
    }
    store(t.row_sum + lane, inverse);
    store(t.row_max + lane, top);
    const Vec<T> factor = inverse * keep_scale;
    for (int64_t r = 0; r < t.value_dim; ++r) {
      Vec<T> x{};
      if (*t.seen) x = select(seen, load(t.out + r * t.lanes + lane) * factor, Vec<T>{});
      store(out + r * t.lanes + lane, x);
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
