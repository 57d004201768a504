// Scores and softmax of up to four queries against many keys, which lie in rows and are read once.
#pragma once

#include <type_traits>

#include "exp2.h"
#include "gemm.h"
#include "rules.h"
#include "transpose.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// A square of keys, one to a lane, and features is turned around in registers: as many of both, or
// twice as many features of bfloat16, in pairs.
template <class S>
constexpr bool kInPairs = kTypeOf<S> == DType::BFloat16;
template <class T, class S>
constexpr int kFeatures = kWidth<T> * (kInPairs<S> ? 2 : 1);

// f(x, i) for each feature, or pair of features, of a square of keys, in order.
template <class T, class S, class F>
MULTIHEAD_INLINE void each_feature(const S* k, int64_t row, F f) {
  constexpr int W = kWidth<T>;
  if constexpr (sizeof(S) == sizeof(T) || kInPairs<S>) {  // whole pieces come from memory in place
    using U = std::conditional_t<kInPairs<S>, uint32_t, T>;
    constexpr int E = kPiece<U>;
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < W; i += E) {
      Vec<U> x[E];
      MULTIHEAD_UNROLL(4)
      for (int r = 0; r < E; ++r)
        x[r] = load_pieces<U>(k + r * row + i * int(sizeof(U) / sizeof(S)),
                              E * row * int64_t(sizeof(S)));
      transpose_pieces<U>(x);
      MULTIHEAD_UNROLL(4)
      for (int r = 0; r < E; ++r) f(x[r], i + r);
    }
  } else {
    Vec<T> x[W];
    MULTIHEAD_UNROLL(16)
    for (int r = 0; r < W; ++r) x[r] = load(k + r * row);
    transpose_square<T>(x);
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < W; ++i) f(x[i], i);
  }
}

// sum[n] += q[n] . k over the features of a square, in their order.
template <class T, class S, int N>
MULTIHEAD_INLINE void add_square(const RowScores<T>& t, const S* k, int64_t d, Vec<T>* sum) {
  const int64_t q_row = t.q_row;
  const T* const q = t.q + d;
  each_feature<T>(k + d, t.k.row, [&](auto x, int i) MULTIHEAD_ALWAYS_INLINE {
    MULTIHEAD_UNROLL(4)
    for (int n = 0; n < N; ++n) {
      if constexpr (kInPairs<S>) {
        sum[n] = fma(first_of(x), splat(q[n * q_row + 2 * i]), sum[n]);
        sum[n] = fma(second_of(x), splat(q[n * q_row + 2 * i + 1]), sum[n]);
      } else {
        sum[n] = fma(x, splat(q[n * q_row + i]), sum[n]);
      }
    }
  });
}

// Asks for what later squares take: line after line, where rows lie without gaps; of the rows some
// way on, where they do not; or more of the same rows, where these are long.
template <class T, class S>
MULTIHEAD_INLINE void ask_ahead(const RowScores<T>& t, const S* k, int64_t d) {
  constexpr int W = kWidth<T>, kLine = 64 / int(sizeof(S));
  constexpr int kLines = W * kFeatures<T, S> > kLine ? W * kFeatures<T, S> / kLine : 1;
  constexpr int64_t kAhead = 8192 / int64_t(sizeof(S)), kRowsAhead = 24;
  const bool is_long = t.head_dim * int64_t(sizeof(S)) > 2048;
  if (t.k.row == t.head_dim && !is_long) {
    const S* const at = k + kAhead + d * W;
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < kLines; ++i) MULTIHEAD_PREFETCH_L1(at + i * kLine);
  } else if (d % kLine == 0) {
    const S* const at = k + d + (is_long ? kLine : kRowsAhead * t.k.row);
    MULTIHEAD_UNROLL(16)
    for (int r = 0; r < W; ++r) MULTIHEAD_PREFETCH_L1(at + r * t.k.row);
  }
}

// sum[n] += what features [d, end) add, for up to kWidth keys.
template <class T, class S, int N>
void add_rest(const RowScores<T>& t, int64_t key, int64_t d, int64_t end, Vec<T>* sum) {
  constexpr int W = kWidth<T>;
  for (; d < end; d += W) {
    const int64_t count = end - d < W ? end - d : W;
    Vec<T> x[W];
    for (int r = 0; r < W; ++r) {  // the last key again where there are fewer
      const int64_t at = key + r < t.keys ? key + r : t.keys - 1;
      const S* const row = static_cast<const S*>(t.k.data) + at * t.k.row + d;
      alignas(64) T part[W] = {};
      for (int64_t i = 0; i < count; ++i) part[i] = widen(row[i]);
      x[r] = load(part);
    }
    transpose_square<T>(x);
    for (int i = 0; i < count; ++i)
      for (int n = 0; n < N; ++n) sum[n] = fma(x[i], splat(t.q[n * t.q_row + d + i]), sum[n]);
  }
}

// The sums of a block of features join those before it, as in a product of tiles; those of the
// first one the bias.
template <class T, int N>
MULTIHEAD_INLINE void put_scores(const RowScores<T>& t, int64_t key, bool first, Vec<T>* sum) {
  constexpr int W = kWidth<T>;
  alignas(64) T few[W] = {};
  const T* bias = t.bias ? t.bias + key : few;
  if (t.bias && key + W > t.keys) {
    for (int i = 0; key + i < t.keys; ++i) few[i] = t.bias[key + i];
    bias = few;
  }
  MULTIHEAD_UNROLL(4)
  for (int n = 0; n < N; ++n) {
    T* const to = t.s + n * t.s_row + key;
    store(to, sum[n] + load(first ? bias : to));
  }
}

// G times kWidth keys side by side: so many chains.
template <class T, class S, int N, int G>
MULTIHEAD_INLINE void score_groups(const RowScores<T>& t, int64_t key) {
  constexpr int W = kWidth<T>;
  const S* const k = static_cast<const S*>(t.k.data) + key * t.k.row;
  int64_t d = 0;
  do {
    const bool first = d == 0;
    const int64_t end = t.head_dim - d < kDepth ? t.head_dim : d + kDepth;
    Vec<T> sum[G][N] = {};
    for (; d + kFeatures<T, S> <= end; d += kFeatures<T, S>) {
      MULTIHEAD_UNROLL(2)
      for (int g = 0; g < G; ++g) {
        const S* const group = k + g * W * t.k.row;
        ask_ahead<T, S>(t, group, d);
        add_square<T, S, N>(t, group, d, sum[g]);
      }
    }
    MULTIHEAD_UNROLL(2)
    for (int g = 0; g < G; ++g) {
      if (d < end) {
        Vec<T> rest[N];  // its address is known outside: no register holds it
        for (int n = 0; n < N; ++n) rest[n] = sum[g][n];
        add_rest<T, S, N>(t, key + g * W, d, end, rest);
        put_scores<T, N>(t, key + g * W, first, rest);
      } else {
        put_scores<T, N>(t, key + g * W, first, sum[g]);
      }
    }
    d = end;
  } while (d < t.head_dim);
}

// Each score is made of the chains of a product of tiles: backward makes it anew there, and both
// must see the same bits.
template <class T, class S, int N>
void scores_of_rows(const RowScores<T>& t) {
  constexpr int W = kWidth<T>;
  int64_t key = 0;
  for (; key + 2 * W <= t.keys; key += 2 * W) score_groups<T, S, N, 2>(t, key);
  for (; key + W <= t.keys; key += W) score_groups<T, S, N, 1>(t, key);
  if (key >= t.keys) return;
  for (int64_t d = 0; d == 0 || d < t.head_dim; d += kDepth) {
    Vec<T> sum[N] = {};
    add_rest<T, S, N>(t, key, d, t.head_dim - d < kDepth ? t.head_dim : d + kDepth, sum);
    put_scores<T, N>(t, key, d == 0, sum);
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
  constexpr int64_t kAhead = 4096;  // bytes, in the order of memory
  const int64_t rows_ahead = kAhead / (g.columns * int64_t(sizeof(S))) + 1;
  const S* v = static_cast<const S*>(g.v.data) + c;
  const T* const p = g.p + query * g.p_row;
  T* const to = g.c + query * g.columns + c;
  Vec<T> sum[Q][N] = {};
  for (int64_t key = 0; key < g.keys; ++key, v += g.v.row) {
    const S* const later = v + rows_ahead * g.v.row;
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      if (j * W * int(sizeof(S)) % 64 == 0) MULTIHEAD_PREFETCH_L1(later + j * W);
      const Vec<T> x = load(v + j * W);
      MULTIHEAD_UNROLL(4)
      for (int i = 0; i < Q; ++i) sum[i][j] = fma(splat(p[i * g.p_row + key]), x, sum[i][j]);
    }
  }
  MULTIHEAD_UNROLL(4)
  for (int i = 0; i < Q; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      T* const at = to + i * g.columns + j * W;
      store(at, load(at) + sum[i][j]);
    }
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
    Vec<T> x = load(t.s + i) * t.factor, derivative;
    if (t.softcap != 0) x = capped<T>(x, cap, &derivative);
    if (t.distance) x = less_distance<T>(x, load(t.distance + i) - t.query, t.slope);
    store(t.s + i, x);
  }
}

// Masked: some of the keys are hidden, or dropped.
template <class T, bool Masked>
MULTIHEAD_INLINE void softmax_of(const RowSoftmax<T>& t) {
  T* const s = t.s;
  const int64_t keys = t.keys;
  const uint64_t *const visible = t.visible, *const keep = t.keep;
  const T* const factors = t.factors;
  constexpr int W = kWidth<T>, N = int(kLane) / W, kChains = 4;
  static_assert(kTile % (kChains * W) == 0);
  const Vec<T> lowest = splat(-kInfinity<T>);
  Vec<T> best[kChains];
  for (Vec<T>& x : best) x = lowest;
  for (int64_t i = 0; i < keys; i += kChains * W) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < kChains; ++j) {
      Vec<T> x = load(s + i + j * W) * factors[i / kTile];
      if (Masked)
        x = select(mask_of_bits<T>(visible[i / kTile], int(i % kTile) + j * W), x, lowest);
      best[j] = maximum(x, best[j]);
    }
  }
  const Vec<T> most = maximum(maximum(best[0], best[1]), maximum(best[2], best[3]));
  T largest = most[0];
  for (int j = 1; j < W; ++j) largest = most[j] > largest ? most[j] : largest;
  const Vec<T> base = splat(largest == lowest[0] ? T(0) : largest);
  Vec<T> parts[N] = {};
  for (int64_t i = 0; i < keys; i += kLane) {
    MULTIHEAD_UNROLL(16)
    for (int j = 0; j < N; ++j) {
      const int lane = int(i % kTile) + j * W;
      T* at = s + i + j * W;
      Vec<T> p = exp2<T>(load(at) * factors[i / kTile] - base);
      if (Masked) p = select(mask_of_bits<T>(visible[i / kTile], lane), p, Vec<T>{});
      parts[j] += p;
      if (Masked && keep) p = select(mask_of_bits<T>(keep[i / kTile], lane), p, Vec<T>{});
      store(at, p);
    }
  }
  T total = 0;
  for (int j = 0; j < N; ++j)
    for (int lane = 0; lane < W; ++lane) total += parts[j][lane];
  *t.top = largest + T(0);  // of zeros of both signs, the lane says which comes last
  *t.sum = total;
}

// The sum runs over 16 interleaved parts that are then added in order, whatever the width of a
// vector.
template <class T>
void softmax_row(const RowSoftmax<T>& t) {
  bool all = !t.keep;
  for (int64_t i = 0; i < t.keys; i += kTile) all &= t.visible[i / kTile] == ~uint64_t(0);
  if (all)
    softmax_of<T, false>(t);
  else
    softmax_of<T, true>(t);
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
