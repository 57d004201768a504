// Moves between rows of features (the caller's arrays), tiles of bfloat16 in the forms that
// products of pairs read, and sums. Each is made of three: rounding, neighbours put side by side,
// and squares of pairs transposed.
#pragma once

#include "pairs.h"
#include "rows.h"
#include "transpose.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kW = kWidth<float>;  // pairs to a register

template <class S>
constexpr bool kIsPair = kTypeOf<S> == DType::BFloat16;  // needs no rounding

// Two rows side by side: a pair for each column.
MULTIHEAD_INLINE U32 side_by_side(const BFloat16* a, const BFloat16* b) {
  return load_words(a) | load_words(b) << 16;
}

// `n` of an array's elements, then zeros: for vectors that reach beyond its end.
template <int64_t N>
struct Edge {
  BFloat16 at[N];
  Edge(const BFloat16* from, int64_t n) {
    for (int64_t i = 0; i < N; ++i) at[i] = from && i < n ? from[i] : BFloat16{0};
  }
};

// 2 kW neighbours of a row of another array, from column c on; zeros from `columns` on, and where
// there is no row.
template <class S>
MULTIHEAD_INLINE U32 neighbours_in(const S* row, int64_t stride, int64_t c, int64_t columns) {
  if (!row) return U32{};
  if (stride == 1 && c + 2 * kW <= columns) {
    if constexpr (kIsPair<S>) return load_groups(row + c);
    return neighbours_of(load(row + c), load(row + c + kW));
  }
  BFloat16 edge[2 * kW];
  for (int64_t i = 0; i < 2 * kW; ++i)
    narrow(edge[i], c + i < columns ? widen(row[(c + i) * stride]) : 0.0f);
  return load_groups(edge);
}

// Rows of the caller's to a tile of pairs of features.
template <class S>
void pack_pairs(BFloat16* tile, int64_t lanes, const S* const* rows, int64_t stride,
                int64_t features) {
  const int64_t pair_rows = kPairs.rows(features) / 2;
  for (int64_t lane = 0; lane < lanes; lane += kW)
    for (int64_t p = 0; p < pair_rows; p += kW) {
      U32 x[kW];
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i) x[i] = neighbours_in(rows[lane + i], stride, 2 * p, features);
      transpose_square<uint32_t>(x);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        if (p + i < pair_rows) store_groups(tile + ((p + i) * lanes + lane) * 2, x[i]);
    }
}

// Rows as they are, with zeros up to pitch.
template <class S>
MULTIHEAD_INLINE void gather_row(BFloat16* to, int64_t pitch, const S* row, int64_t stride,
                                 int64_t columns) {
  int64_t c = 0;
  if (row && stride == 1)
    for (; c + 2 * kW <= columns; c += 2 * kW)
      store_groups(to + c, neighbours_in(row, 1, c, columns));
  for (; row && c < columns; ++c) narrow(to[c], widen(row[c * stride]));
  for (; c < pitch; ++c) to[c] = BFloat16{0};
}

inline void gather_pair_rows(BFloat16* to, int64_t pitch, const SourceRows& rows, int64_t columns,
                             int64_t count) {
  Stored<float>::as(rows.type, [&]<class S>() {
    for (int64_t r = 0; r < count; ++r)
      gather_row(to + r * pitch, pitch, static_cast<const S*>(rows.at[r]), rows.stride, columns);
  });
}

// to[c][r] = from[r][c], 2 kW rows and kW columns at a time.
inline void transpose_halves(BFloat16* to, int64_t to_row, const BFloat16* from, int64_t from_row,
                             int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += 2 * kW)
    for (int64_t c = 0; c < columns; c += kW) {
      const int64_t n = columns - c < kW ? columns - c : kW;
      const int64_t m = rows - r < 2 * kW ? rows - r : 2 * kW;
      const BFloat16* const at = from + r * from_row + c;
      U32 x[kW];
      if (n == kW && m == 2 * kW) {
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < kW; ++i)
          x[i] = side_by_side(at + 2 * i * from_row, at + (2 * i + 1) * from_row);
      } else {
        for (int i = 0; i < kW; ++i) {
          const Edge<kW> a(2 * i < m ? at + 2 * i * from_row : nullptr, n);
          const Edge<kW> b(2 * i + 1 < m ? at + (2 * i + 1) * from_row : nullptr, n);
          x[i] = side_by_side(a.at, b.at);
        }
      }
      transpose_square<uint32_t>(x);
      for (int64_t j = 0; j < n; ++j) {
        BFloat16* const row = to + (c + j) * to_row + r;
        if (m == 2 * kW) {
          store_groups(row, x[j]);
        } else {
          BFloat16 edge[2 * kW];
          store_groups(edge, x[j]);
          for (int64_t i = 0; i < m; ++i) row[i] = edge[i];
        }
      }
    }
}

inline void pack_pair_tile(BFloat16* tile, int64_t lanes, const SourceRows& rows, int64_t features,
                           TileOf what) {
  const int64_t filled = kPairs.rows(features);
  if (what == TileOf::Tokens)
    return Stored<float>::as(rows.type, [&]<class S>() {
      pack_pairs(tile, lanes, reinterpret_cast<const S* const*>(rows.at), rows.stride, features);
    });
  if (what == TileOf::Keys) return gather_pair_rows(tile, filled, rows, features, lanes);
  // values: tokens in columns, so many features at a time
  constexpr int64_t kSome = 64;
  BFloat16 some[kTile * kSome];
  const int64_t item = item_bytes(rows.type);
  for (int64_t c = 0; c < filled; c += kSome) {
    const int64_t n = filled - c < kSome ? filled - c : kSome;
    const int64_t given = features - c < n ? features - c : n;
    const void* at[kTile];
    for (int64_t i = 0; i < lanes; ++i)
      at[i] = rows.at[i] ? static_cast<const char*>(rows.at[i]) + c * rows.stride * item : nullptr;
    gather_pair_rows(some, kSome, {at, rows.stride, rows.type}, given, lanes);
    transpose_halves(tile + c * lanes, lanes, some, kSome, lanes, n);
  }
}

// Neighbours of a token to the caller's array, from column c on.
template <class S>
MULTIHEAD_INLINE void put_neighbours(S* row, int64_t stride, int64_t c, int64_t columns, U32 x,
                                     bool accumulate) {
  if constexpr (kIsPair<S>) {
    if (stride == 1 && !accumulate && c + 2 * kW <= columns) return store_groups(row + c, x);
  }
  BFloat16 some[2 * kW];
  store_groups(some, x);
  if (stride == 1 && c + 2 * kW <= columns) {
    for (int64_t i = c; i < c + 2 * kW; i += kW) {
      const F32 y = load(some + i - c);
      store(row + i, accumulate ? load(row + i) + y : y);
    }
    return;
  }
  for (int64_t i = c; i < columns && i < c + 2 * kW; ++i) {
    S& to = row[i * stride];
    narrow(to, accumulate ? widen(to) + widen(some[i - c]) : widen(some[i - c]));
  }
}

template <class S>
void unpack_pairs(S* const* rows, int64_t stride, const BFloat16* tile, int64_t lanes,
                  int64_t features, bool accumulate) {
  const int64_t pair_rows = kPairs.rows(features) / 2;
  for (int64_t lane = 0; lane < lanes; lane += kW)
    for (int64_t p = 0; p < pair_rows; p += kW) {
      U32 x[kW];
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        x[i] = p + i < pair_rows ? load_groups(tile + ((p + i) * lanes + lane) * 2) : U32{};
      transpose_square<uint32_t>(x);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        if (S* const row = rows[lane + i])
          put_neighbours(row, stride, 2 * p, features, x[i], accumulate);
    }
}

inline void unpack_pair_tile(const TargetRows& rows, const BFloat16* tile, int64_t lanes,
                             int64_t features, bool accumulate) {
  Stored<float>::as(rows.type, [&]<class S>() {
    unpack_pairs(reinterpret_cast<S* const*>(rows.at), rows.stride, tile, lanes, features,
                 accumulate);
  });
}

// A row of sums, or zeros after the last one.
MULTIHEAD_INLINE F32 sums_of(const float* sums, int64_t row, int64_t rows, int64_t lanes,
                             int64_t lane) {
  return row < rows ? load(sums + row * lanes + lane) : F32{};
}

inline void pair_tile_of_sums(BFloat16* tile, const float* sums, int64_t lanes, int64_t features,
                              TileOf what) {
  const int64_t filled = kPairs.rows(features);
  const auto pair = [&](int64_t row, int64_t lane) MULTIHEAD_ALWAYS_INLINE {
    return pairs_of(sums_of(sums, row, features, lanes, lane),
                    sums_of(sums, row + 1, features, lanes, lane));
  };
  if (what == TileOf::Tokens) {
    for (int64_t r = 0; r < filled; r += 2)
      for (int64_t lane = 0; lane < lanes; lane += kW)
        store_groups(tile + r * lanes + lane * 2, pair(r, lane));
  } else if (what == TileOf::Values) {
    for (int64_t r = 0; r < filled; ++r)
      for (int64_t lane = 0; lane < lanes; lane += kW)
        store_rounded(tile + r * lanes + lane, sums_of(sums, r, features, lanes, lane));
  } else {
    for (int64_t lane = 0; lane < lanes; lane += kW)
      for (int64_t r = 0; r < filled; r += 2 * kW) {
        U32 x[kW];
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < kW; ++i) x[i] = pair(r + 2 * i, lane);
        transpose_square<uint32_t>(x);
        for (int64_t i = 0; i < kW; ++i) {
          BFloat16* const to = tile + (lane + i) * filled + r;
          if (r + 2 * kW <= filled) {
            store_groups(to, x[i]);
          } else {
            BFloat16 some[2 * kW];
            store_groups(some, x[i]);
            for (int64_t j = 0; r + j < filled; ++j) to[j] = some[j];
          }
        }
      }
  }
}

// Pairs of tokens, [tokens / 2][pitch][2]: the last kLane of them filled up with zeros.
inline void gather_token_pairs(BFloat16* panel, int64_t pitch, const SourceRows& rows,
                               int64_t columns, int64_t tokens) {
  Stored<float>::as(rows.type, [&]<class S>() {
    for (int64_t t = 0; t < (tokens + kLane - 1) / kLane * kLane; t += 2) {
      const S* const a = t < tokens ? static_cast<const S*>(rows.at[t]) : nullptr;
      const S* const b = t + 1 < tokens ? static_cast<const S*>(rows.at[t + 1]) : nullptr;
      BFloat16* const to = panel + t * pitch;
      int64_t c = 0;
      if (a && b && rows.stride == 1)
        for (; c + kW <= columns; c += kW) {
          if constexpr (kIsPair<S>)
            store_groups(to + 2 * c, side_by_side(a + c, b + c));
          else
            store_groups(to + 2 * c, pairs_of(load(a + c), load(b + c)));
        }
      for (; c < pitch; ++c) {
        narrow(to[2 * c], a && c < columns ? widen(a[c * rows.stride]) : 0.0f);
        narrow(to[2 * c + 1], b && c < columns ? widen(b[c * rows.stride]) : 0.0f);
      }
    }
  });
}

// A tile's tokens in pairs, as gather_token_pairs has them.
inline void pair_tile_to_rows(BFloat16* to, int64_t pitch, const BFloat16* tile, int64_t lanes,
                              int64_t features, float) {
  const int64_t pair_rows = kPairs.rows(features) / 2;
  for (int64_t lane = 0; lane < lanes; lane += kW)
    for (int64_t c = 0; c < pitch; c += 2 * kW) {
      U32 x[kW];
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        x[i] = c / 2 + i < pair_rows ? load_groups(tile + ((c / 2 + i) * lanes + lane) * 2) : U32{};
      transpose_square<uint32_t>(x);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; i += 2) {
        BFloat16 some[2][2 * kW];
        store_groups(some[0], x[i]);
        store_groups(some[1], x[i + 1]);
        BFloat16* const row = to + ((lane + i) / 2 * pitch + c) * 2;
        store_groups(row, side_by_side(some[0], some[1]));
        if (c + kW < pitch) store_groups(row + 2 * kW, side_by_side(some[0] + kW, some[1] + kW));
      }
    }
}

inline void rows_to_pair_tile(BFloat16* tile, int64_t lanes, const float* rows, int64_t pitch,
                              int64_t count, int64_t features, float scale) {
  const int64_t pair_rows = kPairs.rows(features) / 2;
  const auto at = [&](int64_t token, int64_t c) MULTIHEAD_ALWAYS_INLINE {
    return token < count && c < pitch ? load(rows + token * pitch + c) * scale : F32{};
  };
  for (int64_t lane = 0; lane < lanes; lane += kW)
    for (int64_t p = 0; p < pair_rows; p += kW) {
      U32 x[kW];
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        x[i] = neighbours_of(at(lane + i, 2 * p), at(lane + i, 2 * p + kW));
      transpose_square<uint32_t>(x);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < kW; ++i)
        if (p + i < pair_rows) store_groups(tile + ((p + i) * lanes + lane) * 2, x[i]);
    }
}

inline const BFloat16* pair_feature_rows(BFloat16* to, int64_t& pitch, const BFloat16* tile,
                                         int64_t lanes, int64_t features, int64_t tokens) {
  const int64_t filled = (tokens + kLane - 1) / kLane * kLane;
  for (int64_t r = 0; r < features; r += 2)
    for (int64_t lane = 0; lane < filled; lane += kW) {
      U32 x = load_groups(tile + r * lanes + lane * 2);
      store_words(to + r * pitch + lane, x & 0xFFFFu);
      store_words(to + (r + 1) * pitch + lane, x >> 16);
    }
  for (int64_t r = 0; r < features && tokens < filled; ++r)
    for (int64_t t = tokens; t < filled; ++t) to[r * pitch + t] = BFloat16{0};
  return to;
}

inline const BFloat16* columns_of_pair_keys(BFloat16* to, const BFloat16* keys, int64_t lanes,
                                            int64_t features) {
  const int64_t filled = kPairs.rows(features);
  transpose_halves(to, lanes, keys, filled, lanes, filled);
  return to;
}
inline const BFloat16* tokens_of_pair_values(BFloat16* to, const BFloat16* values, int64_t lanes,
                                             int64_t features) {
  const int64_t filled = kPairs.rows(features);
  transpose_halves(to, filled, values, lanes, filled, lanes);
  return to;
}

// Small passes

inline void sums_of_rows(float* partial, const BFloat16* rows, int64_t pitch, int64_t count,
                         int64_t tokens) {
  for (int64_t r = 0; r < count; ++r, rows += pitch, partial += kLane) {
    float sum[kLane] = {};
    for (int64_t t = 0; t < tokens; t += kLane) {
      const int64_t n = tokens - t < kLane ? tokens - t : kLane;
      for (int64_t i = 0; i < n; ++i) sum[i] += widen(rows[t + i]);
    }
    for (int64_t i = 0; i < kLane; ++i) partial[i] += sum[i];
  }
}

inline void sums_of_columns(float* sums, const BFloat16* panel, int64_t pitch, int64_t tokens,
                            int64_t columns) {
  for (int64_t c = 0; c < columns; c += kW) {
    F32 sum{};
    for (int64_t r = 0; r < tokens; r += kAdded) {
      F32 some{};
      for (int64_t t = r; t < tokens && t < r + kAdded; t += 2) {
        const U32 x = load_groups(panel + t * pitch + 2 * c);
        some += first_of(x);
        if (t + 1 < tokens) some += second_of(x);
      }
      sum += some;
    }
    store(sums + c, load(sums + c) + sum);
  }
}

inline void pair_delta(float* result, const BFloat16* a, const BFloat16* b, int64_t features,
                       int64_t lanes) {
  for (int64_t lane = 0; lane < lanes; lane += kW) {
    F32 sum{};
    for (int64_t r = 0; r < features; r += 2) {
      const U32 x = load_groups(a + r * lanes + 2 * lane),
                y = load_groups(b + r * lanes + 2 * lane);
      sum = fma(first_of(x), first_of(y), sum);
      sum = fma(second_of(x), second_of(y), sum);
    }
    store(result + lane, sum);
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
