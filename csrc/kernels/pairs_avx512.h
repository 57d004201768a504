// Pairs of bfloat16 with AVX512-BF16.
#pragma once

#include <immintrin.h>

namespace multihead::MULTIHEAD_ISA {
namespace {

MULTIHEAD_INLINE F32 add_product(U32 a, U32 b, F32 c) {
  return _mm512_dpbf16_ps(c, __m512bh(a), __m512bh(b));
}
MULTIHEAD_INLINE U32 pairs_of(F32 first, F32 second) {
  const __m512i halves = __m512i(_mm512_cvtne2ps_pbh(second, first));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return U32(_mm512_permutexvar_epi16(order, halves));
}
MULTIHEAD_INLINE U32 neighbours_of(F32 low, F32 high) {
  return U32(__m512i(_mm512_cvtne2ps_pbh(high, low)));
}
MULTIHEAD_INLINE void store_rounded(BFloat16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(_mm512_cvtneps_pbh(x)));
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
