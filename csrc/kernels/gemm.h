// Computes: c[m][lanes] = init + a[m][k] * b[k][lanes]. Each kDepth of k are one chain of FMAs from
// zero, in the order of k; such sums are then added, in order, to what was there. So register
// blocking changes no bits, and errors grow with the root of a long sum's blocks, not of
// its length. Where pairs are multiplied, k counts pairs.
#pragma once

#include "pairs.h"
#include "table.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kPanel = kRegisters == 32 ? 4 : 2;  // vectors of b held at a time

template <int NV>
constexpr int kRowsFor = kRegisters == 32 ? (NV == 4   ? 6
                                             : NV == 3 ? 8
                                             : NV == 2 ? 12
                                                       : 16)
                                          : (NV == 2 ? 6 : 8);

// c[m][lanes] = init + a[m][k] * b[k][lanes]; k counts groups, so do the strides along it.
template <class E>
struct Gemm {
  int64_t m, lanes, k;
  Left<E> a;
  const E* b;
  int64_t b_row;  // groups
  Acc<E>* c;
  int64_t c_row;
  Init init = Init::Zero;
  const Acc<E>* start = nullptr;  // LoadScaled: a factor per lane. Bias: a value per row
  int64_t start_stride = 1;       // of Bias
  int64_t room = 0;               // rows from m to here may be read of a and written to c
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
template <class E>
struct Strip {
  const E *a, *b;
  Acc<E>* c;
  int64_t k, first;  // of k
  Init init;
  const Acc<E>* start;
};

// Where a register tile finds its rows.
template <class E>
struct Side {
  const E* a;
  int64_t stride;  // of rows, of columns, or from one panel to the next
  const E* next;   // Rows: where the next tile's rows begin
};

// One register tile; b, c and start are its own.
template <class E, int MR, int NV, Order O>
MULTIHEAD_INLINE void micro(const Gemm<E>& g, Strip<E> strip, Side<E> side, Prefetch& prefetch) {
  const int64_t k = strip.k;
  const Init init = strip.init;
  const E* b = strip.b;
  const Acc<E>* const start = strip.start;
  Acc<E>* const c = strip.c;
  constexpr int W = kLanes<E>, G = kGroup<E>;
  Vec<Acc<E>> acc[MR][NV];
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) acc[i][j] = Vec<Acc<E>>{};
  }
  // Few address registers: every third row's, from which the next two are reached by the stride;
  // one for each panel; one for columns.
  constexpr int kReach = O == Order::Rows ? 3 : O == Order::Panels ? int(kPanelRows) : MR;
  constexpr int kBases = (MR + kReach - 1) / kReach;
  const E* base[kBases];
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < kBases; ++i) base[i] = side.a + (O == Order::Rows ? 3 : 1) * i * side.stride;
  const auto step = [&]() MULTIHEAD_ALWAYS_INLINE {
    decltype(load_groups(b)) x[NV];
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) x[j] = load_groups(b + j * W * G);
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      const int64_t at = O == Order::Rows ? (i % kReach) * side.stride : i % kReach;
      const auto y = splat_group(base[i / kReach] + at);
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] = add_product(y, x[j], acc[i][j]);
    }
    b += g.b_row * G;
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < kBases; ++i)
      base[i] += O == Order::Rows ? G : O == Order::Panels ? kPanelRows : side.stride;
  };
  constexpr int kLine = 64 / int(sizeof(E)) / G;
  int64_t p = 0;
  for (; p + kLine <= k; p += kLine) {
    // its lines come from memory that no prefetcher foresees
    const E* row = O == Order::Rows ? side.next + p * G : nullptr;
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
  if (init == Init::Load) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] += load(c + i * g.c_row + j * W);
    }
  } else if (init == Init::LoadScaled) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) {
      const Vec<Acc<E>> factor = load(start + j * W);
      MULTIHEAD_UNROLL(16)
      for (int i = 0; i < MR; ++i)
        acc[i][j] = fma(load(c + i * g.c_row + j * W), factor, acc[i][j]);
    }
  } else if (init == Init::Bias) {
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < NV; ++j) acc[i][j] += splat(start[i * g.start_stride]);
    }
  }
  MULTIHEAD_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    MULTIHEAD_UNROLL(4)
    for (int j = 0; j < NV; ++j) store(c + i * g.c_row + j * W, acc[i][j]);
  }
}

// The rows of a register tile from those of another type than E.
template <class E, int MR>
MULTIHEAD_INLINE void widen_rows(E* copy, const Left<E>& a, int64_t row, const Strip<E>& strip) {
  if constexpr (kGroup<E> == 1) {
    constexpr int W = kWidth<E>;
    Stored<E>::as(a.type, [&]<class S>() {
      for (int r = 0; r < MR; ++r, copy += kDepth) {
        const S* const from = static_cast<const S*>(a.stored) + (row + r) * a.row + strip.first;
        MULTIHEAD_PREFETCH_L1(from + MR * a.row);
        int64_t p = 0;
        for (; p + W <= strip.k; p += W) store(copy + p, load(from + p));
        for (; p < strip.k; ++p) copy[p] = widen(from[p]);
      }
    });
  }
}

// As many register tiles of MR rows as fit; returns the row where the next size goes on.
template <class E, int MR, int NV, Order O>
MULTIHEAD_INLINE int64_t sweep(const Gemm<E>& g, const Strip<E>& strip, Prefetch& prefetch,
                               int64_t i) {
  const E* const a = strip.a;
  for (; i + MR <= g.m; i += MR) {
    Side<E> side{};
    E copy[MR * kDepth];
    if (O == Order::Rows && kGroup<E> == 1 && g.a.stored) {
      widen_rows<E, MR>(copy, g.a, i, strip);
      side = {copy, kDepth, copy};
    } else if (O == Order::Rows) {
      const E* const next = i + MR < g.m ? a + (i + MR) * g.a.row : a + kDepth * kGroup<E>;
      side = {a + i * g.a.row, g.a.row, next};
      if (kGroup<E> == 1 && g.a.k != 1) {  // neither rows nor columns
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
    Strip<E> tile = strip;
    tile.c += i * g.c_row;
    if (strip.init == Init::Bias) tile.start += i * g.start_stride;
    micro<E, MR, NV, O>(g, tile, side, prefetch);
  }
  return i;
}

template <class E, int NV, Order O>
void panel(const Gemm<E>& g, int64_t lane, Prefetch& prefetch) {
  // In panels, tiles must not reach from the middle of one into the next.
  constexpr int kMost =
      O == Order::Panels && kRowsFor<NV> % kPanelRows ? int(kPanelRows) : kRowsFor<NV>;
  constexpr int64_t G = kGroup<E>;
  for (int64_t k0 = 0; k0 == 0 || k0 < g.k; k0 += kDepth) {
    const int64_t step = O == Order::Panels ? g.a.row : g.a.k;
    const Strip<E> strip{.a = g.a.data ? g.a.data + k0 * step * G : nullptr,
                         .b = g.b + (k0 * g.b_row + lane) * G,
                         .c = g.c + lane,
                         .k = g.k - k0 < kDepth ? g.k - k0 : kDepth,
                         .first = k0,
                         .init = k0 == 0 ? g.init : Init::Load,
                         .start = g.init == Init::LoadScaled ? g.start + lane : g.start};
    int64_t i = sweep<E, kMost, NV, O>(g, strip, prefetch, 0);
    if constexpr (kMost == 12 && O == Order::Panels)
      i = sweep<E, 6, NV, O>(g, strip, prefetch, i);
    else if constexpr (kMost > 8)
      i = sweep<E, 8, NV, O>(g, strip, prefetch, i);
    i = sweep<E, 4, NV, O>(g, strip, prefetch, i);
    i = sweep<E, 2, NV, O>(g, strip, prefetch, i);
    sweep<E, 1, NV, O>(g, strip, prefetch, i);
  }
}

template <class E, Order O>
void panels(const Gemm<E>& g) {
  constexpr int64_t W = kLanes<E>;
  Prefetch prefetch;
  if (g.prefetch) prefetch = *g.prefetch;
  int64_t lane = 0;
  for (; lane + kPanel * W <= g.lanes; lane += kPanel * W) panel<E, kPanel, O>(g, lane, prefetch);
  const int64_t left = (g.lanes - lane) / W;
  if constexpr (kPanel == 4) {
    if (left == 3) panel<E, 3, O>(g, lane, prefetch);
    if (left == 2) panel<E, 2, O>(g, lane, prefetch);
  }
  if (left == 1) panel<E, 1, O>(g, lane, prefetch);
  if (g.prefetch) *g.prefetch = prefetch;
}

template <class E>
void gemm_in_registers(const Gemm<E>& g) {
  if (g.m <= 0) return;
  if constexpr (kGroup<E> > 1) {  // pairs lie in rows
    panels<E, Order::Rows>(g);
  } else if (g.a.packed) {
    panels<E, Order::Panels>(g);
  } else if (g.a.row == 1 && !g.a.stored) {
    panels<E, Order::Columns>(g);
  } else {
    panels<E, Order::Rows>(g);
  }
}

template <class E>
void gemm(const Gemm<E>& g) {
  gemm_in_registers<E>(g);
}

// Groups that hold n elements.
template <class E>
constexpr int64_t groups(int64_t n) {
  return (n + kGroup<E> - 1) / kGroup<E>;
}

template <class E>
void tile_gemm(const TileGemm<E>& g) {
  gemm<E>({.m = g.m,
           .lanes = g.lanes,
           .k = groups<E>(g.k),
           .a = g.a,
           .b = g.b,
           .b_row = g.lanes,
           .c = g.c,
           .c_row = g.lanes,
           .init = g.init,
           .start = g.bias,
           .start_stride = g.bias_stride,
           .room = g.room,
           .prefetch = g.prefetch});
}

template <class E>
void token_gemm(const TokenGemm<E>& g) {
  gemm<E>({.m = g.m,
           .lanes = g.columns,
           .k = groups<E>(g.tokens),
           .a = {.data = g.a, .row = g.a_row, .k = 1},
           .b = g.b,
           .b_row = g.columns,
           .c = g.c,
           .c_row = g.columns,
           .init = g.adds ? Init::Load : Init::Zero,
           .prefetch = g.prefetch});
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
