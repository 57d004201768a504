// Small passes over rows and tiles.
#pragma once

#include "table.h"
#include "vec_half.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class T>
void scale(T* dst, const T* src, int64_t n, T factor) {
  constexpr int W = kWidth<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(dst + i, load(src + i) * factor);
  for (; i < n; ++i) dst[i] = src[i] * factor;
}

template <class T>
void add_scaled(T* dst, const T* src, int64_t n, T factor) {
  constexpr int W = kWidth<T>;
  int64_t i = 0;
  const Vec<T> f = splat(factor);
  for (; i + W <= n; i += W) store(dst + i, load(dst + i) + load(src + i) * f);
  for (; i < n; ++i) dst[i] += src[i] * factor;
}

// The sums of what has no tile: to += sums, in an array of the caller's.
template <class T>
void add_to_row(const TargetRows& row, const T* sums, int64_t n) {
  constexpr int W = kWidth<T>;
  Stored<T>::as(row.type, [&]<class S>() {
    S* const to = static_cast<S*>(row.at[0]);
    int64_t i = 0;
    for (; row.stride == 1 && i + W <= n; i += W) store(to + i, load(to + i) + load(sums + i));
    for (; i < n; ++i) narrow(to[i * row.stride], widen(to[i * row.stride]) + sums[i]);
  });
}

template <class T>
void row_sums(T* partial, const T* rows, int64_t pitch, int64_t count, int64_t tokens) {
  for (int64_t r = 0; r < count; ++r, rows += pitch, partial += kLane) {
    T sum[kLane] = {};
    for (int64_t t = 0; t < tokens; t += kLane) {
      const int64_t n = tokens - t < kLane ? tokens - t : kLane;
      for (int64_t i = 0; i < n; ++i) sum[i] += rows[t + i];
    }
    for (int64_t i = 0; i < kLane; ++i) partial[i] += sum[i];
  }
}

constexpr int64_t kAdded = 8;  // tokens: a tile's sum is one of such sums

template <class T>
void column_sums(T* sums, const T* panel, int64_t pitch, int64_t tokens, int64_t columns) {
  constexpr int W = kWidth<T>;
  for (int64_t c = 0; c < columns; c += W) {
    Vec<T> sum{};
    for (int64_t r = 0; r < tokens; r += kAdded) {
      Vec<T> some{};
      for (int64_t i = r; i < tokens && i < r + kAdded; ++i) some += load(panel + i * pitch + c);
      sum += some;
    }
    store(sums + c, load(sums + c) + sum);
  }
}

// The sum over rows of a * b, in one vector of lanes.
template <class T>
MULTIHEAD_INLINE Vec<T> dot(const T* a, const T* b, int64_t rows, int64_t lanes, int64_t lane) {
  Vec<T> sum{};
  for (int64_t r = 0; r < rows; ++r)
    sum = fma(load(a + r * lanes + lane), load(b + r * lanes + lane), sum);
  return sum;
}

template <class T>
void delta(T* result, const T* a, const T* b, int64_t features, int64_t lanes) {
  for (int64_t lane = 0; lane < lanes; lane += kWidth<T>)
    store(result + lane, dot<T>(a, b, features, lanes, lane));
}

template <class T>
void add_score_dot(T* result, const T* a, const T* b, int64_t keys, int64_t lanes) {
  for (int64_t lane = 0; lane < lanes; lane += kWidth<T>)
    store(result + lane, load(result + lane) + dot<T>(a, b, keys, lanes, lane));
}

// Of elements that are computed in T.
template <class T, class S>
bool finite_row(const S* x, int64_t n) {
  constexpr int W = kWidth<T>;
  Vec<T> zero{};
  int64_t i = 0;
  for (; i + W <= n; i += W) zero += load(x + i) * T(0);
  T rest = 0;
  for (; i < n; ++i) rest += widen(x[i]) * T(0);
  for (int j = 0; j < W; ++j) rest += zero[j];
  return rest == 0;
}
template <class E>
bool finite(const E* x, int64_t n) {
  return finite_row<Acc<E>>(x, n);
}
template <class T>
bool rows_are_finite(const StoredRows& rows, int64_t count, int64_t columns) {
  return Stored<T>::as(rows.type, [&]<class S>() {
    for (int64_t r = 0; r < count; ++r)
      if (!finite_row<T>(static_cast<const S*>(rows.data) + r * rows.row, columns)) return false;
    return true;
  });
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
