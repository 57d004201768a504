// Computes: 2^x for x <= 0 (a little above is fine), 0 below -100 (float) or -900 (double), NaN
// for NaN. A polynomial of 2^f on [-1/2, 1/2] with p(0) = 1: below 1 ULP in float. Smaller results
// would be no part of any sum, and products of them not normal, which cost a hundred cycles each.
#pragma once

#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float lowest = -100.0f, nothing = -127.0f;
  static constexpr float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23, and the exponent's bias
  static constexpr int mantissa = 23;
  static constexpr float p[] = {
      0.00015353362f, 0.0013398875f, 0.00961843692f, 0.0555033237f, 0.240226477f,
      0.693147182f,   1.0f};
};
template <>
struct Exp2<double> {
  static constexpr double lowest = -900.0, nothing = -1023.0;
  static constexpr double magic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, likewise
  static constexpr int mantissa = 52;
  static constexpr double p[] = {1.3691488853904128e-12, 2.5678435993488206e-11,
                                 4.4455382718708116e-10, 7.054911620801123e-09,
                                 1.01780860092397e-07,   1.321548679014431e-06,
                                 1.5252733804059841e-05, 0.0001540353039338161,
                                 0.0013333558146428443,  0.009618129107628477,
                                 0.05550410866482158,    0.24022650695910072,
                                 0.6931471805599453,     1.0};
};

template <class T>
MULTIHEAD_INLINE Vec<T> exp2(Vec<T> x) {
  using E = Exp2<T>;
  constexpr int n = int(sizeof(E::p) / sizeof(T));
  x = x < splat(E::lowest) ? splat(E::nothing) : x;
  const Vec<T> t = x + splat(E::magic);  // its low bits are the biased exponent of the result
  const Vec<T> f = x - (t - splat(E::magic));
  Vec<T> y = splat(E::p[0]);
  MULTIHEAD_UNROLL(16)
  for (int i = 1; i < n; ++i) y = fma(y, f, splat(E::p[i]));
  const Bits<T> power = reinterpret_cast<Bits<T>>(t) << E::mantissa;
  return y * reinterpret_cast<Vec<T>>(power);
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
