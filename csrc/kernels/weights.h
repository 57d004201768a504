// Computes: attention weights of one tile, as they are after dropout.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class E>
void weights_block(const Block<E>& t, const Stat<E>* row_max, const Stat<E>* row_inv, Acc<E> share,
                   Acc<E>* sum, bool accumulate) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>;
  const A factor = scores<E>(t);
  for (int64_t lane = 0; lane < t.lanes; lane += W) {
    const Vec<A> top = load(row_max + lane), inverse = load(row_inv + lane) * share;
    for (int64_t r = 0; r < t.keys; ++r) {
      const int64_t at = r * t.lanes + lane;
      Vec<A> p = exp2<A>(score_above<A>(t.s + at, factor, top)) * inverse;
      if (t.visible) p = select(mask_of_bits<A>(t.visible[r], int(lane)), p, Vec<A>{});
      if (t.keep) p = select(mask_of_bits<A>(t.keep[r], int(lane)), p, Vec<A>{});
      store(sum + at, accumulate ? load(sum + at) + p : p);
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
