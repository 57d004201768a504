// Computes: tanh(x) to about 2 ULP: a polynomial of x^2 near 0, exponentials elsewhere. NaN for
// NaN.
#pragma once

#include "exp2.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class T>
struct Tanh;  // (tanh(x) / x - 1) / x^2 for |x| <= 1/2, in powers of x^2
template <>
struct Tanh<float> {
  static constexpr float p[] = {-0.00694294175f, 0.021470683f, -0.0539334691f, 0.133332258f,
                                -0.333333328f};
};
template <>
struct Tanh<double> {
  static constexpr double p[] = {
      -2.2953304653337329e-5, 8.8195803057450644e-5,  -0.00023635364294136243,
      0.00058946674191019051, -0.0014557608138655874, 0.0035921217969498705,
      -0.0088632351986591344, 0.021869488525867598,   -0.053968253968089754,
      0.13333333333333231,    -0.33333333333333333};
};

template <class T>
MULTIHEAD_INLINE Vec<T> tanh(Vec<T> x) {
  using P = Tanh<T>;
  constexpr int n = int(sizeof(P::p) / sizeof(T));
  const Vec<T> square = x * x, size = maximum(x, -x);
  Vec<T> near = splat(P::p[0]);
  MULTIHEAD_UNROLL(16)
  for (int i = 1; i < n; ++i) near = fma(near, square, splat(P::p[i]));
  near = fma(near * square, x, x);
  const Vec<T> z = exp2<T>(size * T(-2.8853900817779268));  // e^(-2 |x|)
  const Vec<T> far = (T(1) - z) / (T(1) + z);
  return size < splat(T(0.5)) ? near : x < Vec<T>{} ? -far : far;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
