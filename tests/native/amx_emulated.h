// AMX's instructions in plain C++: what they compute, bit for bit, on any machine. Products of
// tiles stop where the registers were not configured before, or were released since.
#pragma once

#include <stdio.h>
#include <stdlib.h>

namespace multihead::MULTIHEAD_ISA {
namespace {

struct TileRegisters {
  bool configured = false;
  uint32_t at[8][16][16];  // rows of 64 bytes
};
static thread_local TileRegisters registers;

inline TileRegisters& configured_registers() {
  if (registers.configured) return registers;
  fprintf(stderr, "AMX: tile registers are used where they are not configured\n");
  abort();
}

inline void configure_tiles() {
  registers = {};
  registers.configured = true;
}
inline void release_tiles() { registers.configured = false; }

template <int T>
inline void clear_tile() {
  memset(configured_registers().at[T], 0, sizeof registers.at[T]);
}
template <int T>
inline void load_tile(const void* from, int64_t row_bytes) {
  for (int r = 0; r < 16; ++r)
    memcpy(configured_registers().at[T][r], static_cast<const char*>(from) + r * row_bytes, 64);
}
template <int T>
inline void store_tile(void* to, int64_t row_bytes) {
  for (int r = 0; r < 16; ++r)
    memcpy(static_cast<char*>(to) + r * row_bytes, configured_registers().at[T][r], 64);
}

// Firsts and seconds of pairs are summed apart, and both added to c in the end.
template <int C, int A, int B>
inline void add_tile_product() {
  constexpr int W = kWidth<float>, N = 16 / W;
  TileRegisters& t = configured_registers();
  for (int m = 0; m < 16; ++m) {
    F32 first[N] = {}, second[N] = {};
    for (int k = 0; k < 16; ++k) {
      const U32 a = splat(t.at[A][m][k]);
      for (int j = 0; j < N; ++j) {
        const U32 b = load(&t.at[B][k][j * W]);
        first[j] = flushed_fma(first_of(a), first_of(b), first[j]);
        second[j] = flushed_fma(second_of(a), second_of(b), second[j]);
      }
    }
    for (int j = 0; j < N; ++j) {
      const F32 c = F32(load(&t.at[C][m][j * W]));
      store(&t.at[C][m][j * W], U32(flushed(flushed(c) + flushed(first[j] + second[j]))));
    }
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
