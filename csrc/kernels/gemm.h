// Computes: c[m][lanes] = init + a[m][k] * b[k][lanes], each element one chain of FMAs in the
// order of k, so blocking changes no bits.
#pragma once

#include "table.h"
#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kPanel = kRegisters == 32 ? 4 : 2;  // vectors of b held at a time

template <int NV>
constexpr int kRowsFor = kRegisters == 32 ? (NV == 4   ? 6
                                             : NV == 3 ? 8
                                             : NV == 2 ? 12
                                                       : 16)
                                          : (NV == 2 ? 6 : 8);

// c[m][lanes] = init + a[m][k] * b[k][lanes]; strides count elements.
template <class T>
struct Gemm {
  int64_t m, lanes, k;
  Left<T> a;
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  Init init = Init::Zero;
  const T* start = nullptr;  // LoadScaled: a factor per lane. Bias: a value per row
  int64_t start_stride = 1;  // of Bias
  Prefetch* prefetch = nullptr;
};

// How a lies: element (i, k) at a[i * stride + k], a[k * stride + i], or in panels of kPanelRows.
enum class Order { Rows, Columns, Panels };

// Asks for the next lines of what is wanted soon, in L2.
MULTIHEAD_INLINE void advance(Prefetch& prefetch) {
  constexpr int kLines = 4;
  if (prefetch.now.lines <= 0) return;
  MULTIHEAD_UNROLL(8)
  for (int i = 0; i < kLines; ++i) MULTIHEAD_PREFETCH_L2(prefetch.now.at + 64 * i);
  prefetch.now.at += 64 * kLines;
  prefetch.now.lines -= kLines;
  if (prefetch.now.lines <= 0 && prefetch.next != prefetch.end) prefetch.now = *prefetch.next++;
}

// A block of k, in the lanes of one panel.
template <class T>
struct Strip {
  const T *a, *b;
  T* c;
  int64_t k;
  Init init;
  const T* start;
};

// Where a register tile finds its rows.
template <class T>
struct Side {
  const T* a;
  int64_t stride;  // of rows, of columns, or from one panel to the next
  const T* next;   // Rows: where the next tile's rows begin
};

// One register tile; b, c and start are its own.
template <class T, int MR, int NV, Order O>
MULTIHEAD_INLINE void micro(const Gemm<T>& g, Strip<T> strip, Side<T> side, Prefetch& prefetch) {
  const int64_t k = strip.k;
  const Init init = strip.init;
  const T *b = strip.b, *start = strip.start;
  T* const c = strip.c;
  constexpr int W = kWidth<T>;
  Vec<T> acc[MR][NV];
  if (init == Init::Zero) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] = Vec<T>{};
    }
  } else if (init == Init::Bias) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] = splat(start[i * g.start_stride]);
    }
  } else {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] = load(c + i * g.c_row + j * W);
    }
    if (init == Init::LoadScaled) {
      Vec<T> factor[NV];
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) factor[j] = load(start + j * W);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < MR; ++i) {
        MULTIHEAD_UNROLL(4)
        for (int j = 0; j < NV; ++j) acc[i][j] *= factor[j];
      }
    }
  }
  // Few address registers: every third row's, from which the next two are reached by the stride;
  // one for each panel; one for columns.
  constexpr int kGroup = O == Order::Rows ? 3 : O == Order::Panels ? int(kPanelRows) : MR;
  constexpr int kBases = (MR + kGroup - 1) / kGroup;
  const T* base[kBases];
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < kBases; ++i) base[i] = side.a + (O == Order::Rows ? 3 : 1) * i * side.stride;
  const auto step = [&]() MULTIHEAD_ALWAYS_INLINE {
    Vec<T> x[NV];
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) x[j] = load(b + j * W);
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      const int64_t at = O == Order::Rows ? (i % kGroup) * side.stride : i % kGroup;
      const Vec<T> y = splat(base[i / kGroup][at]);
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(y, x[j], acc[i][j]);
    }
    b += g.b_row;
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < kBases; ++i)
      base[i] += O == Order::Rows ? 1 : O == Order::Panels ? kPanelRows : side.stride;
  };
  constexpr int kLine = 64 / int(sizeof(T));
  int64_t p = 0;
  for (; p + kLine <= k; p += kLine) {
    const T* row = side.next + p;  // its lines come from memory that no prefetcher foresees
    advance(prefetch);
    for (int i = 0; i < kLine; i += 2) {
      if (O == Order::Rows) {
        MULTIHEAD_PREFETCH_L1(row);
        row += side.stride;
      } else if (O == Order::Panels) {
        MULTIHEAD_PREFETCH_L1(base[0] + 256 * kPanelRows);
      } else {
        MULTIHEAD_PREFETCH_L1(base[0] + kLine);
        MULTIHEAD_PREFETCH_L1(base[0] + side.stride + kLine);
      }
      step();
      step();
    }
  }
  for (; p < k; ++p) step();
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) store(c + i * g.c_row + j * W, acc[i][j]);
  }
}

// As many register tiles of MR rows as fit; returns the row where the next size goes on.
template <class T, int MR, int NV, Order O>
MULTIHEAD_INLINE int64_t sweep(const Gemm<T>& g, const Strip<T>& strip, Prefetch& prefetch,
                               int64_t i) {
  const T* const a = strip.a;
  for (; i + MR <= g.m; i += MR) {
    Side<T> side{};
    T copy[MR * kDepth];
    if (O == Order::Rows) {
      side = {a + i * g.a.row, g.a.row, i + MR < g.m ? a + (i + MR) * g.a.row : a + kDepth};
      if (g.a.k != 1) {  // neither rows nor columns
        for (int64_t r = 0; r < MR; ++r)
          for (int64_t p = 0; p < strip.k; ++p)
            copy[r * kDepth + p] = side.a[r * g.a.row + p * g.a.k];
        side = {copy, kDepth, copy};
      }
    } else if (O == Order::Columns) {
      side = {a + i, g.a.k, nullptr};
    } else {
      side = {a + i / kPanelRows * kPanelRows * strip.k + i % kPanelRows, kPanelRows * strip.k,
              nullptr};
    }
    Strip<T> tile = strip;
    tile.c += i * g.c_row;
    if (strip.init == Init::Bias) tile.start += i * g.start_stride;
    micro<T, MR, NV, O>(g, tile, side, prefetch);
  }
  return i;
}

template <class T, int NV, Order O>
void panel(const Gemm<T>& g, int64_t lane, Prefetch& prefetch) {
  // In panels, tiles must not reach from the middle of one into the next.
  constexpr int kMost =
      O == Order::Panels && kRowsFor<NV> % kPanelRows ? int(kPanelRows) : kRowsFor<NV>;
  for (int64_t k0 = 0; k0 == 0 || k0 < g.k; k0 += kDepth) {
    const Strip<T> strip{.a = g.a.data + k0 * (O == Order::Panels ? g.a.row : g.a.k),
                         .b = g.b + k0 * g.b_row + lane,
                         .c = g.c + lane,
                         .k = g.k - k0 < kDepth ? g.k - k0 : kDepth,
                         .init = k0 == 0 ? g.init : Init::Load,
                         .start = g.init == Init::LoadScaled ? g.start + lane : g.start};
    int64_t i = sweep<T, kMost, NV, O>(g, strip, prefetch, 0);
    if constexpr (kMost == 12 && O == Order::Panels)
      i = sweep<T, 6, NV, O>(g, strip, prefetch, i);
    else if constexpr (kMost > 8)
      i = sweep<T, 8, NV, O>(g, strip, prefetch, i);
    i = sweep<T, 4, NV, O>(g, strip, prefetch, i);
    i = sweep<T, 2, NV, O>(g, strip, prefetch, i);
    sweep<T, 1, NV, O>(g, strip, prefetch, i);
  }
}

template <class T, Order O>
void panels(const Gemm<T>& g) {
  constexpr int64_t W = kWidth<T>;
  Prefetch prefetch;
  if (g.prefetch) prefetch = *g.prefetch;
  int64_t lane = 0;
  for (; lane + kPanel * W <= g.lanes; lane += kPanel * W) panel<T, kPanel, O>(g, lane, prefetch);
  const int64_t left = (g.lanes - lane) / W;
  if constexpr (kPanel == 4) {
    if (left == 3) panel<T, 3, O>(g, lane, prefetch);
    if (left == 2) panel<T, 2, O>(g, lane, prefetch);
  }
  if (left == 1) panel<T, 1, O>(g, lane, prefetch);
  if (g.prefetch) *g.prefetch = prefetch;
}

template <class T>
void gemm(const Gemm<T>& g) {
  if (g.m <= 0) return;
  if (g.a.packed) {
    panels<T, Order::Panels>(g);
  } else if (g.a.row == 1) {
    panels<T, Order::Columns>(g);
  } else {
    panels<T, Order::Rows>(g);
  }
}

template <class T>
void tile_gemm(const TileGemm<T>& g) {
  gemm<T>({.m = g.m,
           .lanes = g.lanes,
           .k = g.k,
           .a = g.a,
           .b = g.b,
           .b_row = g.lanes,
           .c = g.c,
           .c_row = g.lanes,
           .init = g.init,
           .start = g.bias,
           .start_stride = g.bias_stride,
           .prefetch = g.prefetch});
}

template <class T>
void token_gemm(const TokenGemm<T>& g) {
  gemm<T>({.m = g.m,
           .lanes = g.columns,
           .k = g.tokens,
           .a = {.data = g.a, .row = g.lanes, .k = 1},
           .b = g.b,
           .b_row = g.columns,
           .c = g.c,
           .c_row = g.columns,
           .init = g.adds ? Init::Load : Init::Zero,
           .prefetch = g.prefetch});
}

template <class T>
void row_gemm(const RowGemm<T>& g) {
  gemm<T>({.m = g.queries,
           .lanes = g.columns,
           .k = g.keys,
           .a = {.data = g.p, .row = g.p_row, .k = 1},
           .b = g.v,
           .b_row = g.v_row,
           .c = g.c,
           .c_row = g.columns,
           .init = g.adds ? Init::Load : Init::Zero});
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
