// Scores and softmax of few queries against many keys, which lie in rows and are read once.
#pragma once

#include "exp2.h"
#include "table.h"
#include "transpose.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// s[i][j] = q[i] . k[j]: 16 interleaved sums along a row, which are then added in order. q is
// padded with zeros to a multiple of 16; s has room for keys up to the next multiple.
template <class T>
void row_scores(T* s, int64_t s_row, const T* q, int64_t q_row, int64_t queries, const T* k,
                int64_t k_row, int64_t keys, int64_t head_dim) {
  constexpr int W = kWidth<T>, N = int(kLane) / W;
  constexpr int64_t kFar = 24;  // rows to ask for ahead of their use
  const int64_t whole = head_dim / kLane * kLane;
  for (int64_t j = 0; j < keys; j += W) {
    const T* rows[W];
    alignas(64) T rest[W][kLane] = {};
    for (int64_t r = 0; r < W; ++r) {
      rows[r] = k + (j + r < keys ? j + r : keys - 1) * k_row;
      for (int64_t d = whole; d < head_dim; ++d) rest[r][d - whole] = rows[r][d];
      for (int64_t d = 0; d < head_dim; d += 64 / int64_t(sizeof(T)))
        MULTIHEAD_PREFETCH_L1(rows[r] + kFar * k_row + d);
    }
    for (int64_t i = 0; i < queries; ++i) {
      const T* to = q + i * q_row;
      Vec<T> sum{};
      MULTIHEAD_UNROLL(4)
      for (int part = 0; part < N; ++part) {
        Vec<T> x[W];
        MULTIHEAD_UNROLL(16)
        for (int r = 0; r < W; ++r) x[r] = Vec<T>{};
        for (int64_t d = part * W; d < whole; d += kLane) {
          const Vec<T> y = load(to + d);
          MULTIHEAD_UNROLL(16)
          for (int r = 0; r < W; ++r) x[r] = fma(load(rows[r] + d), y, x[r]);
        }
        if (whole < head_dim) {
          const Vec<T> y = load(to + whole + part * W);
          MULTIHEAD_UNROLL(16)
          for (int r = 0; r < W; ++r) x[r] = fma(load(rest[r] + part * W), y, x[r]);
        }
        transpose_square<T>(x);
        MULTIHEAD_UNROLL(16)
        for (int r = 0; r < W; ++r) sum += x[r];
      }
      store(s + i * s_row + j, sum);
    }
  }
}

// s = probabilities kept (not divided by their sum), 0 where a bit of visible is 0. The sum runs
// over 16 interleaved parts that are then added in order, whatever the width of a vector.
template <class T>
void softmax_row(T* s, int64_t keys, const uint64_t* visible, const uint64_t* keep, T* top,
                 T* sum) {
  constexpr int W = kWidth<T>, N = int(kLane) / W;
  const Vec<T> lowest = splat(-kInfinity<T>);
  Vec<T> best = lowest;
  for (int64_t i = 0; i < keys; i += W)
    best = maximum(select(mask_of_bits<T>(visible[i / kTile], int(i % kTile)), load(s + i), lowest),
                   best);
  T largest = best[0];
  for (int j = 1; j < W; ++j) largest = best[j] > largest ? best[j] : largest;
  const Vec<T> base = splat(largest == lowest[0] ? T(0) : largest);
  Vec<T> parts[N] = {};
  for (int64_t i = 0; i < keys; i += kLane) {
    MULTIHEAD_UNROLL(16)
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
