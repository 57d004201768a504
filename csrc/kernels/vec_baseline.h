// Any CPU: 16-byte vectors that the compiler lowers, and no fused multiply-add.
#pragma once

#include "vec_masks.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 16;

MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) { return a * b + c; }
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return a > b ? a : b; }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return a > b ? a : b; }

MULTIHEAD_INLINE uint64_t bits_at_least(U32 a, U32 b) {
  uint64_t bits = 0;
  for (int i = 0; i < kWidth<uint32_t>; ++i) bits |= uint64_t(a[i] >= b[i]) << i;
  return bits;
}

// A bit per lane of the result of a comparison.
template <class M>
MULTIHEAD_INLINE uint64_t bits_of(M m) {
  uint64_t bits = 0;
  for (int i = 0; i < int(sizeof(M) / sizeof(m[0])); ++i) bits |= uint64_t(m[i] & 1) << i;
  return bits;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
