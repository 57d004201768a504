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
  gemm<T>({.m = t.keys,
           .lanes = t.lanes,
           .k = t.head_dim,
           .a = {.data = t.k, .row = 1, .k = t.key_lanes},
           .b = t.q,
           .b_row = t.lanes,
           .c = t.s,
           .c_row = t.lanes,
           .prefetch = t.prefetch});
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

// All lanes of a pass: f<number of vectors>(lane) in chunks the registers hold.
template <class T, class F>
MULTIHEAD_INLINE void for_lanes(int64_t lanes, F f) {
  constexpr int64_t W = kWidth<T>;
  int64_t lane = 0;
  for (; lane + 4 * W <= lanes; lane += 4 * W) f.template operator()<4>(lane);
  for (; lane + 2 * W <= lanes; lane += 2 * W) f.template operator()<2>(lane);
  for (; lane < lanes; lane += W) f.template operator()<1>(lane);
}

// c += a . b as gemm does, row k of b for the lanes whose bits visible[k] has: a hidden pair adds
// nothing even where a holds a NaN.
template <class T>
void visible_lanes(const Gemm<T>& g, const uint64_t* visible) {
  constexpr int W = kWidth<T>;
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t lane = 0; lane < g.lanes; lane += W) {
      Vec<T> sum = load(g.c + i * g.c_row + lane);
      for (int64_t k = 0; k < g.k; ++k) {
        const T factor = g.a.data[i * g.a.row + k * g.a.k];
        const Vec<T> next = fma(splat(factor), load(g.b + k * g.b_row + lane), sum);
        sum = select(mask_of_bits<T>(visible[k], int(lane)), next, sum);
      }
      store(g.c + i * g.c_row + lane, sum);
    }
}

// c += a . b as gemm does, for the pairs (row i of a, row k of b) whose bits visible[i] has.
template <class T>
void visible_rows(const Gemm<T>& g, const uint64_t* visible) {
  constexpr int W = kWidth<T>;
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t k = 0; k < g.k; ++k) {
      if (!(visible[i] >> k & 1)) continue;
      const Vec<T> factor = splat(g.a.data[i * g.a.row + k * g.a.k]);
      T* c = g.c + i * g.c_row;
      for (int64_t lane = 0; lane < g.lanes; lane += W)
        store(c + lane, fma(factor, load(g.b + k * g.b_row + lane), load(c + lane)));
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
