// NEON: 4 floats to a register.
#pragma once

#include <arm_neon.h>

#include "vec_masks.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 32;

MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return F32(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
}
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) {
  return F64(vfmaq_f64(float64x2_t(c), float64x2_t(a), float64x2_t(b)));
}
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return a > b ? a : b; }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return a > b ? a : b; }

MULTIHEAD_INLINE uint64_t bits_at_least(U32 a, U32 b) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgeq_u32(uint32x4_t(a), uint32x4_t(b)), bit));
}

// A bit per lane of the result of a comparison.
MULTIHEAD_INLINE uint64_t bits_of(Bits<float> m) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(uint32x4_t(m), bit));
}
MULTIHEAD_INLINE uint64_t bits_of(Bits<double> m) {
  return uint64_t(m[0] & 1) | uint64_t(m[1] & 2);
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
