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

// Exchanges the off-diagonal blocks of size D of the pair of rows (a, b).
template <class T, int D, int... I>
MULTIHEAD_INLINE void exchange(Vec<T>& a, Vec<T>& b, Indices<I...>) {
  constexpr int W = kWidth<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((I & D) ? W + I - D : I)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((I & D) ? W + I : I + D)...);
  a = low;
  b = high;
}

template <class T, int D = 1>
MULTIHEAD_INLINE void transpose_square(Vec<T>* x) {
  constexpr int W = kWidth<T>;
  if constexpr (D < W) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < W; ++i)
      if (!(i & D)) exchange<T, D>(x[i], x[i + D], typename MakeIndices<W>::type{});
    transpose_square<T, 2 * D>(x);
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
