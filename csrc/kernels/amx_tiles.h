// AMX's instructions on numbered tile registers of 16 rows of 64 bytes.
#pragma once

#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// All eight registers, until they are released: a configured thread costs every switch to it.
inline void configure_tiles() {
  static constexpr TileConfiguration all;
  asm volatile("ldtilecfg %0" : : "m"(all));
}
inline void release_tiles() { asm volatile("tilerelease"); }

template <int T>
MULTIHEAD_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
MULTIHEAD_INLINE void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(T) : "memory");
}
template <int T>
MULTIHEAD_INLINE void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(T) : "memory");
}
template <int C, int A, int B>
MULTIHEAD_INLINE void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
