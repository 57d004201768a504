// Computes: attention weights of one tile, as they are after dropout.
#pragma once

#include "scores.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class T>
void weights_block(const Block<T>& t, const T* row_max, const T* row_inv, T factor, T* sum,
                   bool accumulate) {
  constexpr int W = kWidth<T>;
  scores<T>(t);
  for (int64_t lane = 0; lane < t.lanes; lane += W) {
    const Vec<T> top = load(row_max + lane), inverse = load(row_inv + lane) * factor;
    for (int64_t r = 0; r < t.keys; ++r) {
      const int64_t at = r * t.lanes + lane;
      Vec<T> p = exp2<T>(load(t.s + at) - top) * inverse;
      if (t.visible) p = select(mask_of_bits<T>(t.visible[r], int(lane)), p, Vec<T>{});
      if (t.keep) p = select(mask_of_bits<T>(t.keep[r], int(lane)), p, Vec<T>{});
      store(sum + at, accumulate ? load(sum + at) + p : p);
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
