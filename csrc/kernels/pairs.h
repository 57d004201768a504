// Groups of neighbours that one instruction multiplies: one number, or a pair of bfloat16, whose
// products are summed in the float of the same lane.
#pragma once

#include "layout.h"
#include "vec_half.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

template <class E>
constexpr int kGroup = int(sizeof(Acc<E>) / sizeof(E));
template <class E>
constexpr int kLanes = kWidth<Acc<E>>;  // groups to a register

typedef uint32_t PairInMemory __attribute__((aligned(2), may_alias));
typedef uint32_t PairsInMemory __attribute__((vector_size(kBytes), aligned(2), may_alias));

MULTIHEAD_INLINE F32 load_groups(const float* p) { return load(p); }
MULTIHEAD_INLINE F64 load_groups(const double* p) { return load(p); }
MULTIHEAD_INLINE F32 splat_group(const float* p) { return splat(*p); }
MULTIHEAD_INLINE F64 splat_group(const double* p) { return splat(*p); }
MULTIHEAD_INLINE F32 add_product(F32 a, F32 b, F32 c) { return fma(a, b, c); }
MULTIHEAD_INLINE F64 add_product(F64 a, F64 b, F64 c) { return fma(a, b, c); }

// Features are filled up to whole pairs, or to what a tile register holds.
#if defined(MULTIHEAD_AMX)
constexpr int64_t kStep = 32;
constexpr LeftLayout kLeft{.rows = 16, .depth = 32, .aligned = 64};
#else
constexpr int64_t kStep = 2;
constexpr LeftLayout kLeft{};
#endif
constexpr TileLayout kPairs{.group = 2, .step = kStep};
constexpr TileLayout kPairKeys{.group = 1, .step = kStep, .by_token = true};
constexpr TileLayout kPairValues{.group = 1, .step = kStep};
template <class E>
constexpr TileLayout kLayout = kGroup<E> > 1 ? kPairs : TileLayout{};

typedef uint16_t Halves __attribute__((vector_size(kBytes)));

// A pair in a lane: the first in its low half.
MULTIHEAD_INLINE U32 load_groups(const BFloat16* p) {
  return *reinterpret_cast<const PairsInMemory*>(p);
}
MULTIHEAD_INLINE void store_groups(BFloat16* p, U32 x) { *reinterpret_cast<PairsInMemory*>(p) = x; }
MULTIHEAD_INLINE U32 splat_group(const BFloat16* p) {
  return splat(uint32_t(*reinterpret_cast<const PairInMemory*>(p)));
}
MULTIHEAD_INLINE F32 first_of(U32 pairs) { return F32(pairs << 16); }
MULTIHEAD_INLINE F32 second_of(U32 pairs) { return F32(pairs & 0xFFFF0000u); }

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA

// add_product(a, b, c) = c + a[1] b[1] + a[0] b[0] in each lane. Rounded to nearest even, NaN stays
// NaN: pairs_of(first, second), lane by lane; neighbours_of(low, high), whose pairs are neighbours
// in low, then in high; store_rounded. The instructions take denormals for 0.
#if defined(MULTIHEAD_PAIRS_HEADER)  // tests bring one
#include MULTIHEAD_PAIRS_HEADER
#elif defined(__AVX512BF16__)
#include "pairs_avx512.h"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "pairs_neon.h"
#endif
