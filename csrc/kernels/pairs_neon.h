// Pairs of bfloat16 with NEON's dot product.
#pragma once

#include <arm_neon.h>

namespace multihead::MULTIHEAD_ISA {
namespace {

MULTIHEAD_INLINE F32 add_product(U32 a, U32 b, F32 c) {
  return F32(vbfdotq_f32(float32x4_t(c), bfloat16x8_t(uint32x4_t(a)), bfloat16x8_t(uint32x4_t(b))));
}
MULTIHEAD_INLINE U32 pairs_of(F32 first, F32 second) {
  const uint16x8_t low = uint16x8_t(vcvtq_low_bf16_f32(float32x4_t(first)));
  const uint16x8_t high = uint16x8_t(vcvtq_low_bf16_f32(float32x4_t(second)));
  return U32(vzip1q_u16(low, high));
}
MULTIHEAD_INLINE U32 neighbours_of(F32 low, F32 high) {
  return U32(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(float32x4_t(low)), float32x4_t(high)));
}
MULTIHEAD_INLINE void store_rounded(BFloat16* p, F32 x) {
  vst1_u16(&p->bits, uint16x4_t(vcvt_bf16_f32(float32x4_t(x))));
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
