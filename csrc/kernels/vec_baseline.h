// Any CPU: 16-byte vectors that the compiler lowers, and no fused multiply-add.
#pragma once

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 16;

MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) { return a * b + c; }
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return a > b ? a : b; }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return a > b ? a : b; }

template <class T>
using Mask = Bits<T>;

template <class T>
MULTIHEAD_INLINE Mask<T> mask_of_bits(uint64_t word, int lane);
template <>
MULTIHEAD_INLINE Bits<float> mask_of_bits<float>(uint64_t word, int lane) {
  const Bits<float> bit = {1, 2, 4, 8};
  const Bits<float> all = int32_t(word >> lane) - Bits<float>{};
  return (all & bit) == bit;
}
template <>
MULTIHEAD_INLINE Bits<double> mask_of_bits<double>(uint64_t word, int lane) {
  const Bits<double> bit = {1, 2};
  const Bits<double> all = int64_t(word >> lane) - Bits<double>{};
  return (all & bit) == bit;
}
MULTIHEAD_INLINE F32 select(Bits<float> m, F32 a, F32 b) { return m ? a : b; }
MULTIHEAD_INLINE F64 select(Bits<double> m, F64 a, F64 b) { return m ? a : b; }

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
