// What stands between products and the softmax: the cap of scores, and ALiBi. Scores are in log2
// units.
#pragma once

#include "table.h"
#include "tanh.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// Numbers of the lanes.
template <class T>
struct Lanes {
  alignas(64) T at[kTile];
  constexpr Lanes() : at() {
    for (int i = 0; i < int(kTile); ++i) at[i] = T(i);
  }
};
template <class T>
constexpr Lanes<T> kLanesFrom0{};

// A cap, and what a score is multiplied by under it.
template <class T>
struct Cap {
  T cap, inverse;
  MULTIHEAD_INLINE explicit Cap(T of) : cap(of), inverse(T(1) / of) {}
};

// A capped score, and the derivative of the cap: s to cap * tanh(s / cap).
template <class T>
MULTIHEAD_INLINE Vec<T> capped(Vec<T> s, Cap<T> cap, Vec<T>* derivative) {
  const Vec<T> t = tanh<T>(s, cap.inverse);
  *derivative = fma(-t, t, splat(T(1)));
  return t * cap.cap;
}

// ALiBi: a score less the slope times the distance of its query and its key.
template <class T>
MULTIHEAD_INLINE Vec<T> less_distance(Vec<T> s, Vec<T> distance, T slope) {
  return fma(splat(-slope), maximum(distance, -distance), s);
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
