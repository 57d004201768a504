// Vectors of one register, the same few operations on every ISA.
#pragma once

#include <stdint.h>

#include "../platform/compiler.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kBytes = MULTIHEAD_VECTOR_BYTES;

template <class T>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef float memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef double memory __attribute__((vector_size(kBytes), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct VecType<uint32_t> {
  typedef uint32_t type __attribute__((vector_size(kBytes)));
  typedef uint32_t memory __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
};

template <class T>
using Vec = typename VecType<T>::type;
template <class T>
using Bits = typename VecType<T>::bits;
using F32 = Vec<float>;
using F64 = Vec<double>;
using U32 = Vec<uint32_t>;

template <class T>
constexpr int kWidth = kBytes / int(sizeof(T));

template <class T>
constexpr T kInfinity = T(__builtin_inf());
template <class T>
constexpr T kLargest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);

template <class T>
MULTIHEAD_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecType<T>::memory*>(p);
}
template <class T>
MULTIHEAD_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecType<T>::memory*>(p) = v;
}
template <class T>
MULTIHEAD_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA

// fma(a, b, c) = a * b + c; maximum(a, b) = a > b ? a : b (b where either is NaN);
// Mask, mask_of_bits<T>(word, lane), select(mask, a, b); bits_at_least(a, b), bits_of(a < b): a bit
// per lane; load_pieces<T>(p, bytes): a vector of pieces of 16 bytes, so far apart in memory.
#if defined(MULTIHEAD_VEC_HEADER)  // tests bring one
#include MULTIHEAD_VEC_HEADER
#elif defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(__aarch64__)
#include "vec_neon.h"
#else
#include "vec_baseline.h"
#endif
