// Scores of one tile, and the products that skip what a mask hides.
#pragma once

#include "exp2.h"
#include "gemm.h"
#include "rows.h"
#include "rules.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// How products read keys as their left factor: token by token where pairs are multiplied.
template <class E>
MULTIHEAD_INLINE Left<E> by_token(KeyTile<E> tile, int64_t lanes, int64_t features) {
  if constexpr (kGroup<E> > 1)
    return {.data = tile.data, .row = kPairs.rows(features), .k = 1};
  else if (tile.row)
    return {.data = tile.data, .row = tile.row, .k = 1};
  else
    return {.data = tile.data, .row = 1, .k = lanes};
}
// And values: feature by feature.
template <class E>
MULTIHEAD_INLINE Left<E> by_feature(KeyTile<E> tile, int64_t lanes) {
  if (kGroup<E> == 1 && tile.row) return {.data = tile.data, .row = 1, .k = tile.row};
  return {.data = tile.data, .row = lanes, .k = 1};
}

// c[key][query] = the sum over features of a key's and a query's.
template <class E>
MULTIHEAD_INLINE void dot_products(const Block<E>& t, Left<E> keys, const E* queries,
                                   int64_t features, Acc<E>* c) {
  gemm<E>({.m = t.keys,
           .lanes = t.lanes,
           .k = groups<E>(features),
           .a = keys,
           .b = queries,
           .b_row = t.lanes,
           .c = c,
           .c_row = t.lanes,
           .room = t.key_lanes,
           .prefetch = t.prefetch});
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

// Scores in log2 units, as rules change them and masks add to them, N vectors of lanes at a time.
// What is read of the block is read once: stores to scores might change it, as far as is known.
template <class E, bool Capped, bool Sloped, int N>
MULTIHEAD_INLINE void apply_rules(const Block<E>& t, int64_t lane) {
  using A = Acc<E>;
  constexpr int W = kWidth<A>;
  const Vec<A> lowest = splat(-kLargest<A>);
  const A factor = t.score_factor, slope = t.slope;
  const Cap<A> cap(t.softcap);
  const int64_t keys = t.keys, lanes = t.lanes, given = Sloped ? t.given_keys : 0;
  A *const s = t.s + lane, *const derivatives = t.cap_slope ? t.cap_slope + lane : nullptr;
  const A *const bias = t.bias ? t.bias + lane : nullptr, *const key_bias = t.key_bias;
  const A* const distance = t.distance;
  Vec<A> from[N];
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) from[j] = load(kLanesFrom0<A>.at + lane + j * W);
  for (int64_t r = 0; r < keys; ++r) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < N; ++j) {
      const int64_t i = r * lanes + j * W;
      Vec<A> x = load(s + i) * factor;
      if constexpr (Capped) {
        Vec<A> derivative;
        x = capped<A>(x, cap, &derivative);
        if (derivatives) store(derivatives + i, derivative);
      }
      if (Sloped && r < given) x = less_distance<A>(x, splat(distance[r]) - from[j], slope);
      if (bias && key_bias)  // finite masks stay finite: their sum is limited
        x += maximum(lowest, load(bias + i) + key_bias[r]);
      else if (bias)
        x += load(bias + i);
      else if (key_bias)
        x += key_bias[r];
      store(s + i, x);
    }
  }
}
template <class E, bool Capped, bool Sloped>
MULTIHEAD_INLINE void apply_rules(const Block<E>& t) {
  for_lanes<Acc<E>>(t.lanes,
                    [&]<int N>(int64_t lane) { apply_rules<E, Capped, Sloped, N>(t, lane); });
}

// s[key][query] = k . q, with what rules and masks make of it, in log2 units once it is multiplied
// by the result, which is not negative.
template <class E>
MULTIHEAD_INLINE Acc<E> scores(const Block<E>& t) {
  dot_products<E>(t, by_token<E>(t.k, t.key_lanes, t.head_dim), t.q, t.head_dim, t.s);
  if (t.softcap != 0) {
    t.distance ? apply_rules<E, true, true>(t) : apply_rules<E, true, false>(t);
  } else if (t.distance) {
    apply_rules<E, false, true>(t);
  } else if (t.bias || t.key_bias) {
    apply_rules<E, false, false>(t);
  } else {
    return t.score_factor;
  }
  return 1;
}

// How far a score lies above another, in log2 units. Two roundings, so that the largest score is
// exactly 0 above itself, however large it is.
template <class T>
MULTIHEAD_INLINE Vec<T> score_above(const T* s, T factor, Vec<T> base) {
  return load(s) * factor - base;
}

// Rows of a tile as products over them read it.
template <class E, int N>
MULTIHEAD_INLINE void store_groups_of_rows(E* tile, int64_t row, int64_t lanes, int64_t lane,
                                           const Vec<Acc<E>> (*x)[N]) {
  constexpr int W = kLanes<E>, G = kGroup<E>;
  MULTIHEAD_UNROLL(4)
  for (int j = 0; j < N; ++j) {
    E* const to = tile + (row / G * lanes + lane + j * W) * G;
    if constexpr (G == 1)
      store(to, x[0][j]);
    else
      store_groups(to, pairs_of(x[0][j], x[1][j]));
  }
}

// Row k of b, where groups of rows lie together.
template <class E>
MULTIHEAD_INLINE Vec<Acc<E>> row_of(const Gemm<E>& g, int64_t k, int64_t lane) {
  constexpr int G = kGroup<E>;
  const auto x = load_groups(g.b + (k / G * g.b_row + lane) * G);
  if constexpr (G == 1)
    return x;
  else
    return k % G ? second_of(x) : first_of(x);
}

// c = init + a . b as gemm has it, `count` rows of b, row k for the lanes whose bits visible[k]
// has: a hidden pair adds nothing even where a holds a NaN.
template <class E>
void visible_lanes(const Gemm<E>& g, int64_t count, const uint64_t* visible) {
  using A = Acc<E>;
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t lane = 0; lane < g.lanes; lane += kWidth<A>) {
      Vec<A> sum{};
      for (int64_t k = 0; k < count; ++k) {
        const A factor = widen(g.a.data[i * g.a.row + k * g.a.k]);
        const Vec<A> next = fma(splat(factor), row_of<E>(g, k, lane), sum);
        sum = select(mask_of_bits<A>(visible[k], int(lane)), next, sum);
      }
      const Vec<A> before = load(g.c + i * g.c_row + lane);
      store(g.c + i * g.c_row + lane, g.init == Init::LoadScaled
                                          ? fma(before, load(g.start + lane), sum)
                                      : g.init == Init::Load ? before + sum
                                                             : sum);
    }
}

// c += a . b as gemm does, for the pairs (row i of a, row k of b) whose bits visible[i] has.
template <class E>
void visible_rows(const Gemm<E>& g, int64_t count, const uint64_t* visible) {
  using A = Acc<E>;
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t lane = 0; lane < g.lanes; lane += kWidth<A>) {
      Vec<A> sum{};
      for (int64_t k = 0; k < count; ++k) {
        if (!(visible[i] >> k & 1)) continue;
        const Vec<A> factor = splat(A(widen(g.a.data[i * g.a.row + k * g.a.k])));
        sum = fma(factor, row_of<E>(g, k, lane), sum);
      }
      A* const c = g.c + i * g.c_row + lane;
      store(c, load(c) + sum);
    }
}

// Is every feature finite of a tile's first `keys` keys?
template <class E>
bool finite_keys(KeyTile<E> x, int64_t lanes, int64_t features, int64_t keys) {
  const bool in_rows = kGroup<E> == 1 && x.row;
  const int64_t rows = in_rows ? keys : features, columns = in_rows ? features : keys;
  const int64_t pitch = in_rows ? x.row : lanes;
  for (int64_t r = 0; r < rows; ++r)
    if (!finite<E>(x.data + r * pitch, columns)) return false;
  return true;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
