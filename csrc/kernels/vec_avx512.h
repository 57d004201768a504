// AVX-512: 16 floats to a register, and registers for masks.
#pragma once

#include <immintrin.h>

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kRegisters = 32;

MULTIHEAD_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
MULTIHEAD_INLINE F64 fma(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }
MULTIHEAD_INLINE F32 maximum(F32 a, F32 b) { return _mm512_max_ps(a, b); }
MULTIHEAD_INLINE F64 maximum(F64 a, F64 b) { return _mm512_max_pd(a, b); }

template <class T>
struct MaskType;
template <>
struct MaskType<float> {
  using type = __mmask16;
};
template <>
struct MaskType<double> {
  using type = __mmask8;
};
template <class T>
using Mask = typename MaskType<T>::type;

template <class T>
MULTIHEAD_INLINE Mask<T> mask_of_bits(uint64_t word, int lane) {
  return Mask<T>(word >> lane);
}
MULTIHEAD_INLINE F32 select(__mmask16 m, F32 a, F32 b) { return _mm512_mask_mov_ps(b, m, a); }
MULTIHEAD_INLINE F64 select(__mmask8 m, F64 a, F64 b) { return _mm512_mask_mov_pd(b, m, a); }

MULTIHEAD_INLINE uint64_t bits_at_least(U32 a, U32 b) {
  return _mm512_cmpge_epu32_mask(__m512i(a), __m512i(b));
}

// A bit per lane of the result of a comparison.
MULTIHEAD_INLINE uint64_t bits_of(Bits<float> m) { return _mm512_movepi32_mask(__m512i(m)); }
MULTIHEAD_INLINE uint64_t bits_of(Bits<double> m) { return _mm512_movepi64_mask(__m512i(m)); }

template <class T>
MULTIHEAD_INLINE Vec<T> load_pieces(const void* p, int64_t bytes) {
  const auto piece = [=](int64_t i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(static_cast<const char*>(p) + i * bytes));
  };
  __m512 v = _mm512_castps128_ps512(piece(0));
  v = _mm512_mask_broadcast_f32x4(v, 0x00F0, piece(1));
  v = _mm512_mask_broadcast_f32x4(v, 0x0F00, piece(2));
  v = _mm512_mask_broadcast_f32x4(v, 0xF000, piece(3));
  return Vec<T>(v);
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
