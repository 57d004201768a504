// Computes: the gradients of q, k and v for one tile of keys, from scores made anew.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// Neighbours of a row.
template <class E>
MULTIHEAD_INLINE void store_row(E* to, Vec<Acc<E>> x) {
  if constexpr (kRounds<E>)
    store_rounded(to, x);
  else
    store(to, x);
}

// What is left of gradient_step where it is done for one row after another.
enum class Gradient { OfProducts, OfScores };

// p = probabilities kept, ds = p * (d_p - delta), both 0 where hidden.
template <class E, int N, bool Masked, Gradient What>
MULTIHEAD_INLINE void gradient_step(const BackwardBlock<E>& t, int64_t lane, Acc<E> factor) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>, G = kGroup<E>;
  Vec<A> top[N], inverse[N], delta[N];
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    top[j] = load(t.row_max + lane + j * W);
    inverse[j] = load(t.row_inv + lane + j * W);
    delta[j] = load(t.delta + lane + j * W);
  }
  const auto differentiate = [&](int64_t r, Vec<A>* ds) MULTIHEAD_ALWAYS_INLINE {
    const int64_t at = r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      Vec<A> p = exp2<A>(score_above<A>(t.s + at + j * W, factor, top[j])) * inverse[j];
      Vec<A> d = load(t.d_p + at + j * W), kept = p;
      if (kRounds<E>) d *= t.gradient_factor;
      if (t.d_weights) d += load(t.d_weights + at + j * W);
      if (t.keep) {
        const Mask<A> keep = mask_of_bits<A>(t.keep[r], int(lane) + j * W);
        d = select(keep, d, Vec<A>{});
        kept = select(keep, p, Vec<A>{});
      }
      d = p * (d - delta[j]);
      if (What == Gradient::OfProducts && t.softcap != 0) d *= load(t.cap_slope + at + j * W);
      if (Masked) {
        const Mask<A> visible = mask_of_bits<A>(t.visible[r], int(lane) + j * W);
        kept = select(visible, kept, Vec<A>{});
        d = select(visible, d, Vec<A>{});
      }
      ds[j] = d;
      if (What == Gradient::OfScores) {
        store(t.d_p + at + j * W, d);
      } else {
        store_row<E>(t.p + at + j * W, kept);
        store_row<E>(t.ds + at + j * W, d);
      }
    }
  };
  Vec<A> ds[G][N] = {};
  int64_t r = 0;
  for (; r + G <= t.keys; r += G) {
    MULTIHEAD_UNROLL(2)
    for (int i = 0; i < G; ++i) differentiate(r + i, ds[i]);
    if (G > 1 && What == Gradient::OfProducts)
      store_groups_of_rows<E, N>(t.ds_columns, r, t.lanes, lane, ds);
  }
  if (G > 1 && r < t.keys) {
    differentiate(r, ds[0]);
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) ds[G - 1][j] = Vec<A>{};
    if (What == Gradient::OfProducts)
      store_groups_of_rows<E, N>(t.ds_columns, r, t.lanes, lane, ds);
  }
}

template <class E, Gradient What>
MULTIHEAD_INLINE void gradients_of(const BackwardBlock<E>& t) {
  using A = Acc<E>;
  const A factor = scores<E>(t);
  dot_products<E>(t, by_token<E>(t.v_tokens, t.key_lanes, t.value_dim), t.d_out, t.value_dim,
                  t.d_p);
  if (t.visible) {
    for_lanes<A>(t.lanes,
                 [&]<int N>(int64_t lane) { gradient_step<E, N, true, What>(t, lane, factor); });
  } else {
    for_lanes<A>(t.lanes,
                 [&]<int N>(int64_t lane) { gradient_step<E, N, false, What>(t, lane, factor); });
  }
}

template <class E>
void score_gradients(const BackwardBlock<E>& t) {
  gradients_of<E, Gradient::OfScores>(t);
}

template <class E>
void backward_block(const BackwardBlock<E>& t) {
  gradients_of<E, Gradient::OfProducts>(t);
  // d_v += p . d_out and d_k += ds . q, keys in rows; d_q += k^T . ds, queries in lanes
  const auto over_queries = [&](const E* a, const E* rows, int64_t pitch, Acc<E>* sums) {
    return Gemm<E>{.m = t.keys,
                   .lanes = pitch,
                   .k = groups<E>(t.queries),
                   .a = {.data = a, .row = t.lanes, .k = 1},
                   .b = rows,
                   .b_row = pitch,
                   .c = sums,
                   .c_row = pitch,
                   .init = Init::Load,
                   .prefetch = t.prefetch};
  };
  const Gemm<E> d_v = over_queries(t.p, t.d_out_rows, t.value_pitch, t.d_v),
                d_k = over_queries(t.ds, t.q_rows, t.head_pitch, t.d_k),
                d_q{.m = t.head_dim,
                    .lanes = t.lanes,
                    .k = groups<E>(t.keys),
                    .a = by_feature<E>(t.k_columns, t.key_lanes),
                    .b = t.ds_columns,
                    .b_row = t.lanes,
                    .c = t.d_q,
                    .c_row = t.lanes,
                    .init = Init::Load,
                    .prefetch = t.prefetch};
  if (t.visible && !(t.finite && finite_keys<E>(t.k_columns, t.key_lanes, t.head_dim, t.keys))) {
    visible_rows<E>(d_v, t.queries, t.visible);
    visible_rows<E>(d_k, t.queries, t.visible);
    visible_lanes<E>(d_q, t.keys, t.visible);
  } else {
    gemm<E>(d_v);
    gemm<E>(d_k);
    gemm<E>(d_q);
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
