// Vectors of 64 bytes on any machine, with AVX-512's number of registers: the compiler lowers them.
// Register tiles, panels and lane loops are those of AVX-512, and so are the bits.
#pragma once

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 32;

#if defined(__FMA__)
// In halves, which is exact per lane and some ten times faster.
MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) {
  const auto low = [](F32 x) { return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7); };
  const auto high = [](F32 x) {
    return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  };
  return __builtin_shufflevector(_mm256_fmadd_ps(low(a), low(b), low(c)),
                                 _mm256_fmadd_ps(high(a), high(b), high(c)), 0, 1, 2, 3, 4, 5, 6, 7,
                                 8, 9, 10, 11, 12, 13, 14, 15);
}
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) {
  const auto low = [](F64 x) { return __builtin_shufflevector(x, x, 0, 1, 2, 3); };
  const auto high = [](F64 x) { return __builtin_shufflevector(x, x, 4, 5, 6, 7); };
  return __builtin_shufflevector(_mm256_fmadd_pd(low(a), low(b), low(c)),
                                 _mm256_fmadd_pd(high(a), high(b), high(c)), 0, 1, 2, 3, 4, 5, 6,
                                 7);
}
#else
template <class V>
MULTIHEAD_INLINE V fma_lanes(V a, V b, V c) {
  V result{};
  for (int i = 0; i < int(sizeof(V) / sizeof(a[0])); ++i)
    if constexpr (sizeof(a[0]) == 4)
      result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    else
      result[i] = __builtin_fma(a[i], b[i], c[i]);
  return result;
}
MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) { return fma_lanes(a, b, c); }
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) { return fma_lanes(a, b, c); }
#endif
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return a > b ? a : b; }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return a > b ? a : b; }

template <class T>
using Mask = Bits<T>;

template <class T>
MULTIHEAD_INLINE Mask<T> mask_of_bits(uint64_t word, int lane);
template <>
MULTIHEAD_INLINE Bits<float> mask_of_bits<float>(uint64_t word, int lane) {
  const Bits<float> bit = {1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                           1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  const Bits<float> all = int32_t(word >> lane) - Bits<float>{};
  return (all & bit) == bit;
}
template <>
MULTIHEAD_INLINE Bits<double> mask_of_bits<double>(uint64_t word, int lane) {
  const Bits<double> bit = {1, 2, 4, 8, 16, 32, 64, 128};
  const Bits<double> all = int64_t(word >> lane) - Bits<double>{};
  return (all & bit) == bit;
}
MULTIHEAD_INLINE F32 select(Bits<float> m, F32 a, F32 b) { return m ? a : b; }
MULTIHEAD_INLINE F64 select(Bits<double> m, F64 a, F64 b) { return m ? a : b; }

// A bit per lane of the result of a comparison.
template <class M>
MULTIHEAD_INLINE uint64_t bits_of(M m) {
  uint64_t bits = 0;
  for (int i = 0; i < int(sizeof(M) / sizeof(m[0])); ++i) bits |= uint64_t(m[i] & 1) << i;
  return bits;
}
MULTIHEAD_INLINE uint64_t bits_at_least(U32 a, U32 b) { return bits_of(a >= b); }

template <class T>
MULTIHEAD_INLINE Vec<T> load_pieces(const void* p, int64_t bytes) {
  Vec<T> v;
  for (int i = 0; i < kBytes / 16; ++i)
    __builtin_memcpy(reinterpret_cast<char*>(&v) + 16 * i, static_cast<const char*>(p) + i * bytes,
                     16);
  return v;
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA

// No register holds such a vector, and nothing is gained by unrolling, which takes long to compile.
#undef MULTIHEAD_FORGET
#define MULTIHEAD_FORGET(vector) asm volatile("" : "+m"(vector))
#undef MULTIHEAD_UNROLL
#define MULTIHEAD_UNROLL(n)
