// Softmax of one query's scores, keys in lanes: for few queries against many keys.
#pragma once

#include "exp2.h"
#include "table.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// s = probabilities kept (not divided by their sum), 0 where a bit of visible is 0. The sum runs
// over 16 interleaved parts that are then added in order, whatever the width of a vector.
template <class T>
void softmax_row(T* s, int64_t keys, const uint64_t* visible, const uint64_t* keep, T* top,
                 T* sum) {
  constexpr int W = kWidth<T>, N = int(kLane) / W;
  const Vec<T> lowest = splat(-T(__builtin_inf()));
  Vec<T> best = lowest;
  for (int64_t i = 0; i < keys; i += W)
    best = maximum(select(mask_of_bits<T>(visible[i / kTile], int(i % kTile)), load(s + i), lowest),
                   best);
  T largest = best[0];
  for (int j = 1; j < W; ++j) largest = best[j] > largest ? best[j] : largest;
  const Vec<T> base = splat(largest == lowest[0] ? T(0) : largest);
  Vec<T> parts[N] = {};
  for (int64_t i = 0; i < keys; i += kLane) {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      const int lane = int(i % kTile) + j * W;
      T* at = s + i + j * W;
      Vec<T> p = exp2<T>(load(at) - base);
      p = select(mask_of_bits<T>(visible[i / kTile], lane), p, Vec<T>{});
      parts[j] += p;
      if (keep) p = select(mask_of_bits<T>(keep[i / kTile], lane), p, Vec<T>{});
      store(at, p);
    }
  }
  T total = 0;
  for (int j = 0; j < N; ++j)
    for (int lane = 0; lane < W; ++lane) total += parts[j][lane];
  *top = largest;
  *sum = total;
}

// x = 2^x, each x <= 0.
template <class T>
void exp2_all(T* x, int64_t n) {
  constexpr int W = kWidth<T>;
  for (int64_t i = 0; i < n; i += W) {
    alignas(64) T part[W] = {};
    for (int64_t j = 0; j < W && i + j < n; ++j) part[j] = x[i + j];
    store(part, exp2<T>(load(part)));
    for (int64_t j = 0; j < W && i + j < n; ++j) x[i + j] = part[j];
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
