// Vectors of floats from float16 and bfloat16 in memory, and back: the bits of storage.h's scalars.
#pragma once

#include "storage.h"
#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

typedef uint16_t Words __attribute__((vector_size(kBytes / 2)));
typedef uint16_t WordsInMemory __attribute__((vector_size(kBytes / 2), aligned(2), may_alias));

// Words to lanes and back: GCC 12 makes three instructions of AVX-512's one.
#if defined(__AVX512F__) && MULTIHEAD_VECTOR_BYTES == 64
MULTIHEAD_INLINE U32 load_words(const void* p) {
  return U32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
}
MULTIHEAD_INLINE void store_words(void* p, U32 words) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(__m512i(words)));
}
#else
MULTIHEAD_INLINE U32 load_words(const void* p) {
  return __builtin_convertvector(*static_cast<const WordsInMemory*>(p), U32);
}
MULTIHEAD_INLINE void store_words(void* p, U32 words) {
  *static_cast<WordsInMemory*>(p) = __builtin_convertvector(words, Words);
}
#endif

MULTIHEAD_INLINE F32 load(const BFloat16* p) { return F32(load_words(p) << 16); }
MULTIHEAD_INLINE void store(BFloat16* p, F32 v) {
  const U32 bits = U32(v), top = bits >> 16;
  const U32 rounded = (bits + 0x7FFFu + (top & 1)) >> 16;
  const Bits<float> nan = v != v;
  const U32 chosen = (U32(nan) & (top | 0x40u)) | (~U32(nan) & rounded);
  store_words(p, chosen);
}

#if defined(__AVX512F__) && MULTIHEAD_VECTOR_BYTES == 64
MULTIHEAD_INLINE F32 load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MULTIHEAD_INLINE void store(Float16* p, F32 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__) && MULTIHEAD_VECTOR_BYTES == 32
MULTIHEAD_INLINE F32 load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MULTIHEAD_INLINE void store(Float16* p, F32 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__aarch64__) && MULTIHEAD_VECTOR_BYTES == 16
MULTIHEAD_INLINE F32 load(const Float16* p) {
  return F32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))));
}
MULTIHEAD_INLINE void store(Float16* p, F32 v) {
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(v))));
}
#else
MULTIHEAD_INLINE F32 load(const Float16* p) {
  F32 v{};
  for (int i = 0; i < kWidth<float>; ++i) v[i] = widen(p[i]);
  return v;
}
MULTIHEAD_INLINE void store(Float16* p, F32 v) {
  for (int i = 0; i < kWidth<float>; ++i) narrow(p[i], v[i]);
}
#endif

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
