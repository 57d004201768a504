// Moves between rows of features (the caller's arrays) and tiles of tokens in lanes.
#pragma once

#include "table.h"
#include "vec_half.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

// A vector consists of pieces of 16 bytes, and shuffles of two vectors that cost one instruction
// keep to them: they take turns within pieces, or move whole ones.
template <class T>
constexpr int kPiece = 16 / int(sizeof(T));

// Units of U elements from a and b in turn, of the lower or upper half of each piece.
template <class T, int U, bool Upper, int... I>
MULTIHEAD_INLINE Vec<T> take_turns(Vec<T> a, Vec<T> b, Indices<I...>) {
  constexpr int W = kWidth<T>, E = kPiece<T>;
  return __builtin_shufflevector(
      a, b, (I / U % 2 * W + I / E * E + (Upper ? E / 2 : 0) + I % E / (2 * U) * U + I % U)...);
}

// Pieces First and Second of a, then those of b: First alone where a vector has two pieces.
template <class T, int First, int Second, int... I>
MULTIHEAD_INLINE Vec<T> join_pieces(Vec<T> a, Vec<T> b, Indices<I...>) {
  constexpr int W = kWidth<T>, E = kPiece<T>, kEach = W / E / 2;
  return __builtin_shufflevector(
      a, b, (I / E / kEach * W + (I / E % kEach ? Second : First) * E + I % E)...);
}

// Turns the squares within the pieces of as many vectors as a piece has elements.
template <class T>
MULTIHEAD_INLINE void transpose_pieces(Vec<T>* x) {
  constexpr int E = kPiece<T>;
  static_assert(E == 2 || E == 4);
  constexpr typename MakeIndices<kWidth<T>>::type all{};
  const Vec<T> a = take_turns<T, 1, false>(x[0], x[1], all);
  const Vec<T> b = take_turns<T, 1, true>(x[0], x[1], all);
  if constexpr (E == 2) {
    x[0] = a;
    x[1] = b;
  } else {
    const Vec<T> c = take_turns<T, 1, false>(x[2], x[3], all);
    const Vec<T> d = take_turns<T, 1, true>(x[2], x[3], all);
    x[0] = take_turns<T, 2, false>(a, c, all);
    x[1] = take_turns<T, 2, true>(a, c, all);
    x[2] = take_turns<T, 2, false>(b, d, all);
    x[3] = take_turns<T, 2, true>(b, d, all);
  }
}

template <class T>
MULTIHEAD_INLINE void transpose_square(Vec<T>* x) {
  constexpr int W = kWidth<T>, E = kPiece<T>, kPieces = W / E;
  static_assert(kPieces == 1 || kPieces == 2 || kPieces == 4);
  constexpr typename MakeIndices<W>::type all{};
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < W; i += E) transpose_pieces<T>(x + i);
  if constexpr (kPieces == 2) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < E; ++i) {
      const Vec<T> a = x[i], b = x[i + E];
      x[i] = join_pieces<T, 0, 0>(a, b, all);
      x[i + E] = join_pieces<T, 1, 1>(a, b, all);
    }
  } else if constexpr (kPieces == 4) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < E; ++i) {
      const Vec<T> a = join_pieces<T, 0, 1>(x[i], x[i + E], all);
      const Vec<T> b = join_pieces<T, 2, 3>(x[i], x[i + E], all);
      const Vec<T> c = join_pieces<T, 0, 1>(x[i + 2 * E], x[i + 3 * E], all);
      const Vec<T> d = join_pieces<T, 2, 3>(x[i + 2 * E], x[i + 3 * E], all);
      x[i] = join_pieces<T, 0, 2>(a, c, all);
      x[i + E] = join_pieces<T, 1, 3>(a, c, all);
      x[i + 2 * E] = join_pieces<T, 0, 2>(b, d, all);
      x[i + 3 * E] = join_pieces<T, 1, 3>(b, d, all);
    }
  }
}

template <class T, class S>
void pack_from(T* dst, int64_t lanes, const S* const* rows, int64_t stride, int64_t columns) {
  constexpr int W = kWidth<T>;
  for (int64_t r = 0; r < lanes; r += W) {
    int64_t c = 0;
    if (stride == 1) {
      for (; c + W <= columns; c += W) {
        Vec<T> x[W];
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) x[i] = rows[r + i] ? load(rows[r + i] + c) : Vec<T>{};
        transpose_square<T>(x);
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) store(dst + (c + i) * lanes + r, x[i]);
      }
    }
    for (int i = 0; i < W; ++i) {
      const S* row = rows[r + i];
      for (int64_t d = c; d < columns; ++d)
        dst[d * lanes + r + i] = row ? widen(row[d * stride]) : T(0);
    }
  }
}

template <class T>
void pack_scores(T* dst, int64_t lanes, const SourceRows& rows, int64_t columns) {
  Stored<T>::as(rows.type, [&]<class S>() {
    pack_from<T>(dst, lanes, reinterpret_cast<const S* const*>(rows.at), rows.stride, columns);
  });
}

template <class T>
void pack(T* tile, int64_t lanes, const SourceRows& rows, int64_t features, TileOf) {
  pack_scores<T>(tile, lanes, rows, features);
}

template <class T, class S>
void unpack_to(S* const* rows, int64_t stride, const T* src, int64_t lanes, int64_t columns,
               bool accumulate) {
  constexpr int W = kWidth<T>;
  for (int64_t r = 0; r < lanes; r += W) {
    int64_t c = 0;
    if (stride == 1) {
      for (; c + W <= columns; c += W) {
        Vec<T> x[W];
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) x[i] = load(src + (c + i) * lanes + r);
        transpose_square<T>(x);
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) {
          S* row = rows[r + i];
          if (row) store(row + c, accumulate ? load(row + c) + x[i] : x[i]);
        }
      }
    }
    for (int i = 0; i < W; ++i) {
      S* row = rows[r + i];
      if (!row) continue;
      for (int64_t d = c; d < columns; ++d) {
        const T x = src[d * lanes + r + i];
        narrow(row[d * stride], accumulate ? widen(row[d * stride]) + x : x);
      }
    }
  }
}

template <class T>
void unpack(const TargetRows& rows, const T* src, int64_t lanes, int64_t columns, bool accumulate) {
  Stored<T>::as(rows.type, [&]<class S>() {
    unpack_to<T>(reinterpret_cast<S* const*>(rows.at), rows.stride, src, lanes, columns,
                 accumulate);
  });
}

template <class T>
void gather(T* dst, int64_t pitch, const SourceRows& rows, int64_t columns, int64_t count) {
  constexpr int W = kWidth<T>;
  Stored<T>::as(rows.type, [&]<class S>() {
    for (int64_t r = 0; r < count; ++r, dst += pitch) {
      const S* row = static_cast<const S*>(rows.at[r]);
      int64_t c = 0;
      if (rows.stride == 1)
        for (; c + W <= columns; c += W) store(dst + c, load(row + c));
      for (; c < columns; ++c) dst[c] = widen(row[c * rows.stride]);
      for (; c < pitch; ++c) dst[c] = T(0);
    }
  });
}

// dst[c][r] = scale * src[r][c] for r < rows, zero up to dst_row; c < columns.
template <class T>
void transpose(T* dst, int64_t dst_row, const T* src, int64_t src_row, int64_t rows,
               int64_t columns, T scale) {
  constexpr int W = kWidth<T>;
  const Vec<T> factor = splat(scale);
  for (int64_t c = 0; c < columns; c += W) {
    for (int64_t r = 0; r < dst_row; r += W) {
      Vec<T> x[W];
      if (r + W <= rows) {
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) x[i] = load(src + (r + i) * src_row + c) * factor;
      } else {
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i)
          x[i] = r + i < rows ? load(src + (r + i) * src_row + c) * factor : Vec<T>{};
      }
      transpose_square<T>(x);
      if (c + W <= columns) {
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i) store(dst + (c + i) * dst_row + r, x[i]);
      } else {
        MULTIHEAD_UNROLL(16)
        for (int i = 0; i < W; ++i)
          if (c + i < columns) store(dst + (c + i) * dst_row + r, x[i]);
      }
    }
  }
}

template <class T>
void tile_to_rows(T* dst, int64_t pitch, const T* tile, int64_t lanes, int64_t features, T scale) {
  transpose<T>(dst, pitch, tile, lanes, features, lanes, scale);
}

template <class T>
void rows_to_tile(T* tile, int64_t lanes, const T* rows, int64_t pitch, int64_t count,
                  int64_t features, T scale) {
  transpose<T>(tile, lanes, rows, pitch, count, features, scale);
}

template <class T>
void transpose(T* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows,
               int64_t columns) {
  transpose<T>(to, to_row, from, from_row, rows, columns, T(1));
}

// Tiles lie as every product reads them.
template <class T>
const T* feature_rows(T*, int64_t& pitch, const T* tile, int64_t lanes, int64_t, int64_t) {
  pitch = lanes;
  return tile;
}
template <class T>
const T* as_it_is(T*, const T* tile, int64_t, int64_t) {
  return tile;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
