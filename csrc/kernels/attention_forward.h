// Computes: out = v^T . softmax(k . q), one tile of keys at a time, queries in lanes.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// Online softmax over the rows of s: new maximum and sum, p = probabilities kept, and alpha, the
// factor by which everything summed before shrinks.
template <class E, int N, bool Masked>
MULTIHEAD_INLINE void softmax_step(const ForwardBlock<E>& t, int64_t lane, Acc<E> factor,
                                   Acc<E>* alpha) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>, G = kGroup<E>;
  const Vec<A> lowest = splat(-kInfinity<A>);
  Vec<A> top[N], base[N], sum[N];
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) top[j] = lowest;
  for (int64_t r = 0; r < t.keys; ++r) {
    const A* s = t.s + r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      Vec<A> x = load(s + j * W);
      if (Masked) x = select(mask_of_bits<A>(t.visible[r], int(lane) + j * W), x, lowest);
      top[j] = maximum(x, top[j]);
    }
  }
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    top[j] = top[j] != lowest ? top[j] * factor : lowest;
    if (!t.first) top[j] = maximum(load(t.row_max + lane + j * W), top[j]);
    base[j] = top[j] != lowest ? top[j] : Vec<A>{};
    if (!t.first) {
      const Vec<A> shrink = exp2<A>(load(t.row_max + lane + j * W) - base[j]);
      store(alpha + lane + j * W, shrink);
    }
    sum[j] = Vec<A>{};
    store(t.row_max + lane + j * W, top[j]);
  }
  const auto weigh = [&](int64_t r, Vec<A>* p) MULTIHEAD_ALWAYS_INLINE {
    const A* s = t.s + r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      p[j] = exp2<A>(score_above<A>(s + j * W, factor, base[j]));
      if (Masked) p[j] = select(mask_of_bits<A>(t.visible[r], int(lane) + j * W), p[j], Vec<A>{});
      sum[j] += p[j];
    }
    if (t.keep) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < N; ++j)
        p[j] = select(mask_of_bits<A>(t.keep[r], int(lane) + j * W), p[j], Vec<A>{});
    }
  };
  Vec<A> p[G][N] = {};
  int64_t r = 0;
  for (; r + G <= t.keys; r += G) {
    MULTIHEAD_UNROLL(2)
    for (int i = 0; i < G; ++i) weigh(r + i, p[i]);
    store_groups_of_rows<E, N>(t.p, r, t.lanes, lane, p);
  }
  if (G > 1 && r < t.keys) {
    weigh(r, p[0]);
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) p[G - 1][j] = Vec<A>{};
    store_groups_of_rows<E, N>(t.p, r, t.lanes, lane, p);
  }
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    A* const total = t.row_sum + lane + j * W;
    store(total, t.first ? sum[j] : fma(load(total), load(alpha + lane + j * W), sum[j]));
  }
}

template <class E>
void forward_block(const ForwardBlock<E>& t) {
  using A = Acc<E>;
  alignas(64) A alpha[kTile];
  const A factor = scores<E>(t);
  if (t.visible) {
    for_lanes<A>(t.lanes,
                 [&]<int N>(int64_t lane) { softmax_step<E, N, true>(t, lane, factor, alpha); });
    for (int64_t r = 0; r < t.keys; ++r) *t.seen |= t.visible[r];
  } else {
    for_lanes<A>(t.lanes,
                 [&]<int N>(int64_t lane) { softmax_step<E, N, false>(t, lane, factor, alpha); });
    if (t.keys) *t.seen = ~uint64_t(0);
  }
  const bool guard = t.visible && !finite_keys<E>(t.v, t.key_lanes, t.value_dim, t.keys);
  Gemm<E> values{.m = t.value_dim,
                 .lanes = t.lanes,
                 .k = groups<E>(t.keys),
                 .a = by_feature<E>(t.v, t.key_lanes),
                 .b = t.p,
                 .b_row = t.lanes,
                 .c = t.out,
                 .c_row = t.lanes,
                 .init = t.first ? Init::Zero : Init::LoadScaled,
                 .start = alpha,
                 .prefetch = t.prefetch};
  if (guard)
    visible_lanes<E>(values, t.keys, t.visible);
  else
    gemm<E>(values);
}

// Results of other keys join those of `t`, each under the larger of two maxima.
template <class E>
void forward_merge(const ForwardBlock<E>& t, const ForwardBlock<E>& part) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>;
  const Vec<A> lowest = splat(-kInfinity<A>);
  for (int64_t lane = 0; lane < t.lanes; lane += W) {
    const Vec<A> one = load(t.row_max + lane), other = load(part.row_max + lane);
    const Vec<A> top = maximum(one, other), base = top != lowest ? top : Vec<A>{};
    const Vec<A> shrink = exp2<A>(one - base), share = exp2<A>(other - base);
    const auto join = [&](A* to, const A* from) MULTIHEAD_ALWAYS_INLINE {
      store(to, fma(load(to), shrink, load(from) * share));
    };
    store(t.row_max + lane, top);
    join(t.row_sum + lane, part.row_sum + lane);
    for (int64_t r = 0; r < t.value_dim; ++r)
      join(t.out + r * t.lanes + lane, part.out + r * t.lanes + lane);
  }
}

template <class E>
void forward_end(const ForwardBlock<E>& t, Acc<E> keep_scale, E* out) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>, G = kGroup<E>;
  for (int64_t lane = 0; lane < t.lanes; lane += W) {
    const Mask<A> seen = mask_of_bits<A>(*t.seen, int(lane));
    Vec<A> inverse{}, top = splat(kInfinity<A>);
    if (*t.seen) {
      inverse = select(seen, A(1) / load(t.row_sum + lane), Vec<A>{});
      top = select(seen, load(t.row_max + lane), top);
    }
    store(t.row_sum + lane, inverse);
    store(t.row_max + lane, top);
    const Vec<A> factor = inverse * keep_scale;
    for (int64_t r = 0; r < kLayout<E>.rows(t.value_dim); r += G) {
      Vec<A> x[G][1] = {};
      MULTIHEAD_UNROLL(2)
      for (int i = 0; i < G; ++i)
        if (*t.seen && (G == 1 || r + i < t.value_dim))
          x[i][0] = select(seen, load(t.out + (r + i) * t.lanes + lane) * factor, Vec<A>{});
      store_groups_of_rows<E, 1>(out, r, t.lanes, lane, x);
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
