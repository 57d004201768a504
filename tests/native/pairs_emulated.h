// AVX512-BF16's instructions in plain C++: what they compute, bit for bit, on any machine.
#pragma once

namespace multihead::MULTIHEAD_ISA {
namespace {

// The instructions read and write 0 for denormals, whatever the thread's state.
MULTIHEAD_INLINE F32 flushed(F32 x) {
  const U32 bits = U32(x);
  const U32 normal = U32((bits & 0x7F800000u) != 0);
  return F32(bits & (normal | 0x80000000u));
}
MULTIHEAD_INLINE F32 flushed_fma(F32 a, F32 b, F32 c) {
  return flushed(fma(flushed(a), flushed(b), flushed(c)));
}
MULTIHEAD_INLINE F32 add_product(U32 a, U32 b, F32 c) {
  return flushed_fma(first_of(a), first_of(b), flushed_fma(second_of(a), second_of(b), c));
}

MULTIHEAD_INLINE U32 rounded_bits(F32 x) {  // in the low halves
  const U32 bits = U32(flushed(x)), top = bits >> 16;
  const U32 nan = U32(x != x);
  return (nan & (top | 0x40u)) | (~nan & ((bits + 0x7FFFu + (top & 1)) >> 16));
}
MULTIHEAD_INLINE U32 pairs_of(F32 first, F32 second) {
  return rounded_bits(first) | rounded_bits(second) << 16;
}
MULTIHEAD_INLINE void store_rounded(BFloat16* p, F32 x) { store_words(p, rounded_bits(x)); }
MULTIHEAD_INLINE U32 neighbours_of(F32 low, F32 high) {
  BFloat16 both[2 * kWidth<float>];
  store_rounded(both, low);
  store_rounded(both + kWidth<float>, high);
  return load_groups(both);
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
