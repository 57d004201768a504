// Computes: the gradients of q, k and v for one tile of keys, from scores made anew.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// s = probabilities kept, ds = p * (d_p - delta), both 0 where hidden.
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
    T* s = t.s + r * t.lanes + lane;
    T* ds = t.ds + r * t.lanes + lane;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      Vec<T> p = exp2<T>(load(s + j * W) - top[j]) * inverse[j];
      Vec<T> d = load(ds + j * W), kept = p;
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
      store(s + j * W, kept);
      store(ds + j * W, d);
    }
  }
}

template <class T>
void score_gradients(const BackwardBlock<T>& t) {
  scores<T>(t);
  gemm<T>({t.keys, t.lanes, t.value_dim, t.v, 1, t.key_lanes, t.d_out, t.lanes, t.ds, t.lanes,
           Init::Zero, nullptr, 1, t.ahead});
  if (t.visible) {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { gradient_step<T, N, true>(t, lane); });
  } else {
    for_lanes<T>(t.lanes, [&]<int N>(int64_t lane) { gradient_step<T, N, false>(t, lane); });
  }
}

template <class T>
void backward_block(const BackwardBlock<T>& t) {
  score_gradients<T>(t);
  const Init add = Init::Load;
  if (t.visible && !(t.finite && finite_rows<T>(t.k, t.key_lanes, t.head_dim, t.keys))) {
    visible_rows<T>(t.d_v, t.value_pitch, t.keys, t.s, t.lanes, t.d_out_rows, t.queries, t.visible);
    visible_rows<T>(t.d_k, t.head_pitch, t.keys, t.ds, t.lanes, t.q_rows, t.queries, t.visible);
    visible_lanes<T>(t.d_q, t.head_dim, t.lanes, t.k, t.key_lanes, t.ds, t.keys, t.visible);
    return;
  }
  gemm<T>({t.keys, t.value_pitch, t.queries, t.s, t.lanes, 1, t.d_out_rows, t.value_pitch, t.d_v,
           t.value_pitch, add, nullptr, 1, t.ahead});
  gemm<T>({t.keys, t.head_pitch, t.queries, t.ds, t.lanes, 1, t.q_rows, t.head_pitch, t.d_k,
           t.head_pitch, add, nullptr, 1, t.ahead});
  gemm<T>({t.head_dim, t.lanes, t.keys, t.k, t.key_lanes, 1, t.ds, t.lanes, t.d_q, t.lanes, add,
           nullptr, 1, t.ahead});
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
