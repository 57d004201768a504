// Computes: the gradients of q, k and v for one tile of keys, from scores made anew.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// p = probabilities kept, ds = p * (d_p - delta), both 0 where hidden.
template <class T, int N, bool Masked>
MULTIHEAD_INLINE void gradient_step(const BackwardBlock<T>& t, int64_t lane) {
  constexpr int W = kWidth<T>;
  Vec<T> top[N], inverse[N], delta[N];
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    top[j] = load(t.row_max + lane + j * W);
    inverse[j] = load(t.row_inv + lane + j * W);
    delta[j] = load(t.delta + lane + j * W);
  }
  for (int64_t r = 0; r < t.keys; ++r) {
    const T* s = t.s + r * t.lanes + lane;
    const T* d_p = t.d_p + r * t.lanes + lane;
    T* to_p = t.p + r * t.lanes + lane;
    T* to_ds = t.ds + r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      Vec<T> p = exp2<T>(load(s + j * W) - top[j]) * inverse[j];
      Vec<T> d = load(d_p + j * W), kept = p;
      if (t.d_weights) d += load(t.d_weights + r * t.lanes + lane + j * W);
      if (t.keep) {
        const Mask<T> keep = mask_of_bits<T>(t.keep[r], int(lane) + j * W);
        d = select(keep, d, Vec<T>{});
        kept = select(keep, p, Vec<T>{});
      }
      d = p * (d - delta[j]);
      if (Masked) {
        const Mask<T> visible = mask_of_bits<T>(t.visible[r], int(lane) + j * W);
        kept = select(visible, kept, Vec<T>{});
        d = select(visible, d, Vec<T>{});
      }
      store(to_p + j * W, kept);
      store(to_ds + j * W, d);
    }
  }
}

template <class T>
void score_gradients(const BackwardBlock<T>& t) {
  scores<T>(t);
  gemm<T>({.m = t.keys,
           .lanes = t.lanes,
           .k = t.value_dim,
           .a = {.data = t.v, .row = 1, .k = t.key_lanes},
           .b = t.d_out,
           .b_row = t.lanes,
           .c = t.d_p,
           .c_row = t.lanes,
           .prefetch = t.prefetch});
  if (t.visible) {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { gradient_step<T, N, true>(t, lane); });
  } else {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { gradient_step<T, N, false>(t, lane); });
  }
}

template <class T>
void backward_block(const BackwardBlock<T>& t) {
  score_gradients<T>(t);
  // d_v += p . d_out and d_k += ds . q, keys in rows; d_q += k^T . ds, queries in lanes
  const auto over_queries = [&](const T* a, const T* rows, int64_t pitch, T* sums) {
    return Gemm<T>{.m = t.keys,
                   .lanes = pitch,
                   .k = t.queries,
                   .a = {.data = a, .row = t.lanes, .k = 1},
                   .b = rows,
                   .b_row = pitch,
                   .c = sums,
                   .c_row = pitch,
                   .init = Init::Load,
                   .prefetch = t.prefetch};
  };
  const Gemm<T> d_v = over_queries(t.p, t.d_out_rows, t.value_pitch, t.d_v),
                d_k = over_queries(t.ds, t.q_rows, t.head_pitch, t.d_k),
                d_q{.m = t.head_dim,
                    .lanes = t.lanes,
                    .k = t.keys,
                    .a = {.data = t.k, .row = t.key_lanes, .k = 1},
                    .b = t.ds,
                    .b_row = t.lanes,
                    .c = t.d_q,
                    .c_row = t.lanes,
                    .init = Init::Load,
                    .prefetch = t.prefetch};
  if (t.visible && !(t.finite && finite_rows<T>(t.k, t.key_lanes, t.head_dim, t.keys))) {
    visible_rows<T>(d_v, t.visible);
    visible_rows<T>(d_k, t.visible);
    visible_lanes<T>(d_q, t.visible);
  } else {
    gemm<T>(d_v);
    gemm<T>(d_k);
    gemm<T>(d_q);
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
