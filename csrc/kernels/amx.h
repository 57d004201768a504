// Products of pairs on AMX's tile registers: each holds 16 rows of 64 bytes.
#pragma once

#include "gemm.h"
#if !defined(MULTIHEAD_AMX_HEADER)
#include "amx_tiles.h"
#else
#include MULTIHEAD_AMX_HEADER  // tests bring one
#endif

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int64_t kRegisterRows = 16, kRegisterPairs = 16;
// What one square of register tiles works on.
struct Square {
  const BFloat16 *a, *b;
  float* c;
  int64_t a_row, b_row, c_row;  // bytes
  int64_t a_down, a_across;     // to the next 16 rows, the next 16 pairs
  int64_t steps;                // of 16 pairs
  bool adds;
};

// c (+)= a . b for MR x NR register tiles: registers 0 to 3 are c, 4 and 5 a, 6 and 7 b.
template <int MR, int NR>
MULTIHEAD_INLINE void square(const Square& s) {
  const int64_t c_down = kRegisterRows * s.c_row / int64_t(sizeof(float));
  constexpr int64_t kAcross = 16;  // lanes
  if (s.adds) {
    load_tile<0>(s.c, s.c_row);
    if (NR > 1) load_tile<1>(s.c + kAcross, s.c_row);
    if (MR > 1) load_tile<2>(s.c + c_down, s.c_row);
    if (MR > 1 && NR > 1) load_tile<3>(s.c + c_down + kAcross, s.c_row);
  } else {
    clear_tile<0>();
    if (NR > 1) clear_tile<1>();
    if (MR > 1) clear_tile<2>();
    if (MR > 1 && NR > 1) clear_tile<3>();
  }
  const BFloat16 *a = s.a, *b = s.b;
  for (int64_t i = 0; i < s.steps; ++i) {
    load_tile<6>(b, s.b_row);
    load_tile<4>(a, s.a_row);
    add_tile_product<0, 4, 6>();
    if (NR > 1) {
      load_tile<7>(b + 2 * kAcross, s.b_row);
      add_tile_product<1, 4, 7>();
    }
    if (MR > 1) {
      load_tile<5>(a + s.a_down, s.a_row);
      add_tile_product<2, 5, 6>();
      if (NR > 1) add_tile_product<3, 5, 7>();
    }
    a += s.a_across;
    b += kRegisterPairs * s.b_row / int64_t(sizeof(BFloat16));
  }
  store_tile<0>(s.c, s.c_row);
  if (NR > 1) store_tile<1>(s.c + kAcross, s.c_row);
  if (MR > 1) store_tile<2>(s.c + c_down, s.c_row);
  if (MR > 1 && NR > 1) store_tile<3>(s.c + c_down + kAcross, s.c_row);
}

// What products that start from neither zero nor c start from.
inline void set_start(const Gemm<BFloat16>& g, int64_t rows) {
  if (g.init == Init::Bias) {
    for (int64_t i = 0; i < rows; ++i) {
      const F32 x = i < g.m ? splat(g.start[i * g.start_stride]) : F32{};
      for (int64_t lane = 0; lane < g.lanes; lane += kLanes<BFloat16>)
        store(g.c + i * g.c_row + lane, x);
    }
    return;
  }
  bool shrinks = false;  // often nothing does, and 1 changes nothing
  for (int64_t lane = 0; lane < g.lanes; ++lane) shrinks |= g.start[lane] != 1.0f;
  for (int64_t i = 0; shrinks && i < g.m; ++i)
    for (int64_t lane = 0; lane < g.lanes; lane += kLanes<BFloat16>) {
      float* const c = g.c + i * g.c_row + lane;
      store(c, load(c) * load(g.start + lane));
    }
}

// Rows and pairs that fill no register tile go through vectors: packed weights have none.
template <>
void gemm<BFloat16>(const Gemm<BFloat16>& g) {
  const int64_t up = (g.m + kRegisterRows - 1) / kRegisterRows * kRegisterRows;
  const int64_t rows = up <= g.room ? up : g.m / kRegisterRows * kRegisterRows;
  const int64_t pairs = g.k / kRegisterPairs * kRegisterPairs;
  if (rows == 0 || pairs == 0 || g.lanes % 16) return gemm_in_registers<BFloat16>(g);
  if (g.init == Init::Bias || g.init == Init::LoadScaled) set_start(g, rows > g.m ? rows : g.m);
  const int64_t row_bytes = g.a.packed ? kLeft.depth : g.a.row;
  Square s{.a = nullptr,
           .b = nullptr,
           .c = nullptr,
           .a_row = row_bytes * int64_t(sizeof(BFloat16)),
           .b_row = g.b_row * 2 * int64_t(sizeof(BFloat16)),
           .c_row = g.c_row * int64_t(sizeof(float)),
           .a_down = kRegisterRows * g.a.row,
           .a_across = g.a.packed ? kLeft.rows * kLeft.depth : 2 * kRegisterPairs,
           .steps = pairs / kRegisterPairs,
           .adds = g.init != Init::Zero};
  for (int64_t i = 0; i < rows; i += 2 * kRegisterRows)
    for (int64_t lane = 0; lane < g.lanes; lane += 32) {
      s.a = g.a.data + i * g.a.row;
      s.b = g.b + lane * 2;
      s.c = g.c + i * g.c_row + lane;
      const bool two_rows = i + kRegisterRows < rows, two_lanes = lane + 16 < g.lanes;
      if (two_rows)
        two_lanes ? square<2, 2>(s) : square<2, 1>(s);
      else
        two_lanes ? square<1, 2>(s) : square<1, 1>(s);
    }
  Gemm<BFloat16> rest = g;
  if (pairs < g.k) {
    rest.k = g.k - pairs;
    rest.m = rows < g.m ? rows : g.m;
    rest.a.data += 2 * pairs;
    rest.b += pairs * g.b_row * 2;
    rest.init = Init::Load;
    gemm_in_registers<BFloat16>(rest);
  }
  if (rows < g.m) {
    rest = g;
    rest.m = g.m - rows;
    rest.a.data += rows * g.a.row;
    rest.c += rows * g.c_row;
    if (g.init != Init::Zero) rest.init = Init::Load;
    gemm_in_registers<BFloat16>(rest);
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
