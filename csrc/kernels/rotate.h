// Rotary positions: pairs of features turned by the angles of their tokens.
#pragma once

#include "table.h"
#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// (a, b) becomes (a cos - b sin, b cos + a sin), or with the sine's other sign.
template <class T>
void rotate(const Rotate<T>& r) {
  for (int64_t i = 0; i < r.pairs; ++i) {
    T* const a = r.x + i * r.step * r.lanes;
    T* const b = a + r.apart * r.lanes;
    const T *cosine = r.cosine + i * r.row, *sine = r.sine + i * r.row;
    for (int64_t lane = 0; lane < r.lanes; lane += kWidth<T>) {
      const Vec<T> c = load(cosine + lane), s = load(sine + lane);
      const Vec<T> turn = r.back ? -s : s;
      const Vec<T> x = load(a + lane), y = load(b + lane);
      store(a + lane, fma(x, c, -(y * turn)));
      store(b + lane, fma(y, c, x * turn));
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
