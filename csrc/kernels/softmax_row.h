// Scores and softmax of up to four queries against many keys, which lie in rows and are read once.
#pragma once

#include "exp2.h"
#include "gemm.h"
#include "rules.h"
#include "transpose.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// How far ahead of a row to ask for memory, in elements: some rows, or some of a long one.
template <class S, class T>
MULTIHEAD_INLINE int64_t far_ahead(const RowScores<T>& t) {
  constexpr int64_t kRows = 24, kLong = 2048, kBytes = 64;
  return t.head_dim * int64_t(sizeof(S)) > kLong ? kBytes / int64_t(sizeof(S)) : kRows * t.k.row;
}

// A group of keys, one to a lane: up to kWidth of them, the last one again where there are fewer.
template <class T, class S, int N>
MULTIHEAD_INLINE void key_scores(const RowScores<T>& t, int64_t j, int64_t d, int64_t count,
                                 Vec<T>* sum) {
  constexpr int W = kWidth<T>;
  const int64_t far = far_ahead<S>(t);
  Vec<T> x[W];
  alignas(64) T part[W] = {};
  MULTIHEAD_UNROLL(16)
  for (int r = 0; r < W; ++r) {
    const int64_t key = j + r < t.keys ? j + r : t.keys - 1;
    const S* row = static_cast<const S*>(t.k.data) + key * t.k.row + d;
    if (count == W) {
      x[r] = load(row);
    } else {
      for (int64_t i = 0; i < count; ++i) part[i] = widen(row[i]);
      x[r] = load(part);
    }
    if (d * int64_t(sizeof(S)) % 64 == 0) MULTIHEAD_PREFETCH_L1(row + far);
  }
  transpose_square<T>(x);
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < W; ++i) {
    if (i >= count) break;
    MULTIHEAD_UNROLL(4)
    for (int n = 0; n < N; ++n) sum[n] = fma(x[i], splat(t.q[n * t.q_row + d + i]), sum[n]);
  }
}

// The same for 2 kWidth features of bfloat16, which are turned around in pairs.
template <int N>
MULTIHEAD_INLINE void pair_scores(const RowScores<float>& t, int64_t j, int64_t d, F32* sum) {
  constexpr int W = kWidth<float>;
  const int64_t far = far_ahead<BFloat16>(t);
  U32 x[W];
  MULTIHEAD_UNROLL(16)
  for (int r = 0; r < W; ++r) {
    const int64_t key = j + r < t.keys ? j + r : t.keys - 1;
    const BFloat16* row = static_cast<const BFloat16*>(t.k.data) + key * t.k.row + d;
    x[r] = load_groups(row);
    MULTIHEAD_PREFETCH_L1(row + far);
  }
  transpose_square<uint32_t>(x);
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < W; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int n = 0; n < N; ++n) {
      const float* const q = t.q + n * t.q_row + d + 2 * i;
      sum[n] = fma(first_of(x[i]), splat(q[0]), sum[n]);
      sum[n] = fma(second_of(x[i]), splat(q[1]), sum[n]);
    }
  }
}

// Each score is one chain in the order of the features, as it is in a tile: backward makes it anew
// there, and both must see the same bits.
template <class T, class S, int N>
void scores_of_rows(const RowScores<T>& t) {
  constexpr int W = kWidth<T>, kGroups = 2;  // chains side by side
  for (int64_t j = 0; j < t.keys; j += kGroups * W) {
    Vec<T> sum[kGroups][N] = {};
    for (int g = 0; g < kGroups && t.start && j + g * W < t.keys; ++g) {
      alignas(64) T part[W] = {};
      for (int64_t i = 0; i < W && j + g * W + i < t.keys; ++i) part[i] = t.start[j + g * W + i];
      for (int n = 0; n < N; ++n) sum[g][n] = load(part);
    }
    int64_t d = 0;
    if constexpr (kTypeOf<S> == DType::BFloat16)
      for (; d + 2 * W <= t.head_dim; d += 2 * W)
        for (int g = 0; g < kGroups; ++g) pair_scores<N>(t, j + g * W, d, sum[g]);
    for (; d + W <= t.head_dim; d += W)
      for (int g = 0; g < kGroups; ++g) key_scores<T, S, N>(t, j + g * W, d, W, sum[g]);
    for (int g = 0; g < kGroups && d < t.head_dim; ++g)
      key_scores<T, S, N>(t, j + g * W, d, t.head_dim - d, sum[g]);
    for (int g = 0; g < kGroups && j + g * W < t.keys; ++g)
      for (int n = 0; n < N; ++n) store(t.s + n * t.s_row + j + g * W, sum[g][n]);
  }
}

template <class T>
void row_scores(const RowScores<T>& t) {
  Stored<T>::as(t.k.type, [&]<class S>() {
    switch (t.queries) {
      case 1:
        return scores_of_rows<T, S, 1>(t);
      case 2:
        return scores_of_rows<T, S, 2>(t);
      case 3:
        return scores_of_rows<T, S, 3>(t);
      default:
        return scores_of_rows<T, S, 4>(t);
    }
  });
}

// c[i] += p[i] . v, for Q queries and N vectors of columns side by side: the chains of a product of
// tiles.
template <class T, class S, int Q, int N>
MULTIHEAD_INLINE void sums_of_values(const RowGemm<T>& g, int64_t query, int64_t c) {
  constexpr int W = kWidth<T>;
  constexpr int64_t kFar = 4096;  // bytes to ask for before they are used, in the order of memory
  const int64_t far = (kFar / (g.columns * int64_t(sizeof(S))) + 1) * g.v.row;
  const S* v = static_cast<const S*>(g.v.data) + c;
  const T* const p = g.p + query * g.p_row;
  T* const to = g.c + query * g.columns + c;
  Vec<T> sum[Q][N];
  MULTIHEAD_UNROLL(4)
  for (int i = 0; i < Q; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) sum[i][j] = load(to + i * g.columns + j * W);
  }
  for (int64_t key = 0; key < g.keys; ++key, v += g.v.row) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      if (j * W * int(sizeof(S)) % 64 == 0) MULTIHEAD_PREFETCH_L1(v + far + j * W);
      const Vec<T> x = load(v + j * W);
      MULTIHEAD_UNROLL(4)
      for (int i = 0; i < Q; ++i) sum[i][j] = fma(splat(p[i * g.p_row + key]), x, sum[i][j]);
    }
  }
  MULTIHEAD_UNROLL(4)
  for (int i = 0; i < Q; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) store(to + i * g.columns + j * W, sum[i][j]);
  }
}

template <class T, class S, int Q>
MULTIHEAD_INLINE void sums_of_queries(const RowGemm<T>& g, int64_t query) {
  constexpr int W = kWidth<T>;
  int64_t c = 0;
  for (; c + 4 * W <= g.columns; c += 4 * W) sums_of_values<T, S, Q, 4>(g, query, c);
  for (; c < g.columns; c += W) sums_of_values<T, S, Q, 1>(g, query, c);
}

template <class T>
void row_gemm(const RowGemm<T>& g) {
  constexpr int kMost = kRegisters == 32 ? 4 : 2;  // queries at once
  Stored<T>::as(g.v.type, [&]<class S>() {
    int64_t i = 0;
    for (; i + kMost <= g.queries; i += kMost) sums_of_queries<T, S, kMost>(g, i);
    for (; i < g.queries; ++i) sums_of_queries<T, S, 1>(g, i);
  });
}

template <class T>
void row_rules(const RowRules<T>& t) {
  const Cap<T> cap(t.softcap);
  for (int64_t i = 0; i < t.keys; i += kWidth<T>) {
    Vec<T> x = load(t.s + i), derivative;
    if (t.softcap != 0) x = capped<T>(x, cap, &derivative);
    if (t.distance) x = less_distance<T>(x, load(t.distance + i) - t.query, t.slope);
    store(t.s + i, x);
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
