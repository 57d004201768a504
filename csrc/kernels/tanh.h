// Computes: tanh(x) to about 3 ULP, as e / (2 - e) of e = 1 - exp(-2 |x|), in multiplications and
// additions alone: a division would take as long as all of it. NaN for NaN.
#pragma once

#include "exp2.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// What 2^x is nothing beside 1 for.
template <class T>
constexpr T kVanishes = sizeof(T) == 4 ? T(-40) : T(-64);

// 1 - 2^x from kVanishes to 0, without cancellation near 0.
template <class T>
MULTIHEAD_INLINE Vec<T> one_less_exp2(Vec<T> x) {
  using E = Exp2<T>;
  constexpr int n = int(sizeof(E::p) / sizeof(T));
  const Vec<T> t = x + splat(E::magic);
  const Vec<T> f = x - (t - splat(E::magic));
  Vec<T> y = splat(E::p[0]);
  MULTIHEAD_UNROLL(16)
  for (int i = 1; i + 1 < n; ++i) y = fma(y, f, splat(E::p[i]));
  const Vec<T> power = reinterpret_cast<Vec<T>>(reinterpret_cast<Bits<T>>(t) << E::mantissa);
  return fma(-power, f * y, splat(T(1)) - power);
}

// a / d for 1 <= d <= 2: a polynomial that is right to 0.03 %, Newton's steps, and what is left.
template <class T>
MULTIHEAD_INLINE Vec<T> divided(Vec<T> a, Vec<T> d) {
  constexpr T p[] = {T(0.152245019), T(-1.14183764), T(3.37793637), T(-4.92417484), T(3.53553375)};
  Vec<T> r = splat(p[0]);
  MULTIHEAD_UNROLL(4)
  for (int i = 1; i < 5; ++i) r = fma(r, d, splat(p[i]));
  MULTIHEAD_UNROLL(2)
  for (int i = 0; i < (sizeof(T) == 4 ? 0 : 2); ++i) r = fma(r, fma(-d, r, splat(T(1))), r);
  const Vec<T> y = a * r;
  return fma(fma(-d, y, a), r, y);
}

// Of x * scale.
template <class T>
MULTIHEAD_INLINE Vec<T> tanh(Vec<T> x, T scale) {
  const Bits<T> sign = reinterpret_cast<Bits<T>>(splat(T(-0.0)));
  const Bits<T> bits = reinterpret_cast<Bits<T>>(x);
  const Vec<T> down = reinterpret_cast<Vec<T>>(bits | sign) * (T(2.8853900817779268) * scale);
  const Vec<T> e = one_less_exp2<T>(maximum(splat(kVanishes<T>), down));  // of -2 |x| log2(e)
  const Vec<T> y = divided<T>(e, splat(T(2)) - e);
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Bits<T>>(y) | (bits & sign));
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
