// Masks as vectors of integers, for ISAs without mask registers that compare four lanes at a time.
#pragma once

namespace multihead::MULTIHEAD_ISA {
namespace {

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
