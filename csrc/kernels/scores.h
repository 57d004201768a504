// Scores of one tile, and the products that skip what a mask hides.
#pragma once

#include "exp2.h"
#include "gemm.h"
#include "rows.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// s[key][query] = k . q, plus what masks add, in log2 units.
template <class T>
MULTIHEAD_INLINE void scores(const Block<T>& t) {
  constexpr int W = kWidth<T>;
  gemm<T>({t.keys, t.lanes, t.head_dim, t.k, 1, t.key_lanes, t.q, t.lanes, t.s, t.lanes, Init::Zero,
           nullptr, 1, t.ahead});
  if (t.bias && t.key_bias) {  // finite masks stay finite: their sum is limited
    const Vec<T> lowest = splat(-kLargest<T>);
    for (int64_t r = 0; r < t.keys; ++r)
      for (int64_t i = r * t.lanes; i < (r + 1) * t.lanes; i += W)
        store(t.s + i, load(t.s + i) + maximum(lowest, load(t.bias + i) + t.key_bias[r]));
  } else if (t.bias) {
    for (int64_t i = 0; i < t.keys * t.lanes; i += W)
      store(t.s + i, load(t.s + i) + load(t.bias + i));
  } else if (t.key_bias) {
    for (int64_t r = 0; r < t.keys; ++r)
      for (int64_t i = r * t.lanes; i < (r + 1) * t.lanes; i += W)
        store(t.s + i, load(t.s + i) + t.key_bias[r]);
  }
}

// All columns of a pass: f(lane, std constant of vectors) in chunks the registers hold.
template <class T, class F>
MULTIHEAD_INLINE void for_lanes(int64_t lanes, F f) {
  constexpr int64_t W = kWidth<T>;
  int64_t lane = 0;
  for (; lane + 4 * W <= lanes; lane += 4 * W) f.template operator()<4>(lane);
  for (; lane + 2 * W <= lanes; lane += 2 * W) f.template operator()<2>(lane);
  for (; lane < lanes; lane += W) f.template operator()<1>(lane);
}

// c[row][lane] += a[row][key] * b[key][lane], for visible (key, lane) only: a hidden pair adds
// nothing even where a holds a NaN.
template <class T>
void visible_lanes(T* c, int64_t rows, int64_t lanes, const T* a, int64_t a_row, const T* b,
                   int64_t keys, const uint64_t* visible) {
  constexpr int W = kWidth<T>;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t lane = 0; lane < lanes; lane += W) {
      Vec<T> sum = load(c + r * lanes + lane);
      for (int64_t k = 0; k < keys; ++k) {
        const Vec<T> next = fma(splat(a[r * a_row + k]), load(b + k * lanes + lane), sum);
        sum = select(mask_of_bits<T>(visible[k], int(lane)), next, sum);
      }
      store(c + r * lanes + lane, sum);
    }
}

// c[key][column] += a[key][query] * b[query][column], for visible (key, query) only.
template <class T>
void visible_rows(T* c, int64_t pitch, int64_t keys, const T* a, int64_t lanes, const T* b,
                  int64_t queries, const uint64_t* visible) {
  constexpr int W = kWidth<T>;
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t q = 0; q < queries; ++q) {
      if (!(visible[k] >> q & 1)) continue;
      const Vec<T> factor = splat(a[k * lanes + q]);
      for (int64_t i = 0; i < pitch; i += W)
        store(c + k * pitch + i, fma(factor, load(b + q * pitch + i), load(c + k * pitch + i)));
    }
}

// Is every row of a tile finite in its first `columns` columns?
template <class T>
bool finite_rows(const T* x, int64_t pitch, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    if (!finite<T>(x + r * pitch, columns)) return false;
  return true;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
