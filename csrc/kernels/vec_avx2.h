// AVX2 and FMA: 8 floats to a register.
#pragma once

#include <immintrin.h>

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 16;

MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return _mm256_max_ps(a, b); }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return _mm256_max_pd(a, b); }

template <class T>
using Mask = Vec<T>;

template <class T>
MULTIHEAD_INLINE Mask<T> mask_of_bits(uint64_t word, int lane);
template <>
MULTIHEAD_INLINE F32 mask_of_bits<float>(uint64_t word, int lane) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(int(word >> lane));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, bit), bit));
}
template <>
MULTIHEAD_INLINE F64 mask_of_bits<double>(uint64_t word, int lane) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i all = _mm256_set1_epi64x(int64_t(word >> lane));
  return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, bit), bit));
}
MULTIHEAD_INLINE F32 select(F32 m, F32 a, F32 b) { return _mm256_blendv_ps(b, a, m); }
MULTIHEAD_INLINE F64 select(F64 m, F64 a, F64 b) { return _mm256_blendv_pd(b, a, m); }

MULTIHEAD_INLINE uint64_t bits_at_least(U32 a, U32 b) {
  const __m256i top = _mm256_max_epu32(__m256i(a), __m256i(b));
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(top, __m256i(a)))));
}

// A bit per lane of the result of a comparison.
MULTIHEAD_INLINE uint64_t bits_of(Bits<float> m) {
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(__m256i(m))));
}
MULTIHEAD_INLINE uint64_t bits_of(Bits<double> m) {
  return uint32_t(_mm256_movemask_pd(_mm256_castsi256_pd(__m256i(m))));
}

template <class T>
MULTIHEAD_INLINE Vec<T> load_pieces(const void* p, int64_t bytes) {
  const auto piece = [=](int64_t i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(static_cast<const char*>(p) + i * bytes));
  };
  return Vec<T>(_mm256_insertf128_ps(_mm256_castps128_ps256(piece(0)), piece(1), 1));
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
