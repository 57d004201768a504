// Computes: c[m][lanes] = init + a[m][k] * b[k][lanes], each element one chain of FMAs in the
// order of k, so blocking changes no bits.
#pragma once

#include "table.h"
#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

constexpr int kPanel = kRegisters == 32 ? 4 : 2;  // vectors of b held at a time
constexpr int64_t kDepth = 128;                   // rows of b per pass: they stay in L1

template <int NV>
constexpr int kRowsFor = kRegisters == 32 ? (NV == 4   ? 6
                                             : NV == 3 ? 8
                                             : NV == 2 ? 12
                                                       : 16)
                                          : (NV == 2 ? 6 : 8);

// One register tile. KMajor: a is read as a[k * a_k + i], else as a[i * a_row + k * a_k].
template <class T, int MR, int NV, bool KMajor>
MULTIHEAD_INLINE void micro(const Gemm<T>& g, const T* a, const T* b, T* c, int64_t k, Init init,
                            const T* start) {
  constexpr int W = kWidth<T>;
  Vec<T> acc[MR][NV];
  if (init == Init::Zero) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = Vec<T>{};
  } else if (init == Init::Bias) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = splat(start[i * g.start_stride]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = load(c + i * g.c_row + j * W);
    if (init == Init::LoadScaled) {
      Vec<T> factor[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) factor[j] = load(start + j * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] *= factor[j];
    }
  }
  // Rows are reached from every third one by [p], [p + s], [p + 2s]: few address registers.
  constexpr int kBases = (MR + 2) / 3;
  const char* rows[kBases];
  const int64_t row = g.a_row * int64_t(sizeof(T)), step = g.a_k * int64_t(sizeof(T));
#pragma GCC unroll 16
  for (int i = 0; i < kBases; ++i) rows[i] = reinterpret_cast<const char*>(a) + 3 * i * row;
#pragma GCC unroll 2
  for (int64_t p = 0; p < k; ++p) {
    Vec<T> x[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) x[j] = load(b + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T* at = KMajor ? a + i : reinterpret_cast<const T*>(rows[i / 3] + (i % 3) * row);
      const Vec<T> y = splat(*at);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(y, x[j], acc[i][j]);
    }
    b += g.b_row;
    // The next rows of a come from memory that no prefetcher foresees.
    if (KMajor) {
      __builtin_prefetch(a + 2 * MR, 0, 3);
      __builtin_prefetch(a + 16 * g.a_k, 0, 3);
      a += g.a_k;
    } else {
      if (p % 16 == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
          __builtin_prefetch(rows[i / 3] + (i % 3) * row + MR * row, 0, 3);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kBases; ++i) rows[i] += step;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(c + i * g.c_row + j * W, acc[i][j]);
}

// As many register tiles of MR rows as fit; returns the row where the next size goes on.
template <class T, int MR, int NV, bool KMajor>
MULTIHEAD_INLINE int64_t sweep(const Gemm<T>& g, const T* a, const T* b, T* c, int64_t k, Init init,
                               const T* start, int64_t i) {
  for (; i + MR <= g.m; i += MR) {
    const T* from = init == Init::Bias ? start + i * g.start_stride : start;
    micro<T, MR, NV, KMajor>(g, a + i * (KMajor ? 1 : g.a_row), b, c + i * g.c_row, k, init, from);
  }
  return i;
}

template <class T, int NV, bool KMajor>
void panel(const Gemm<T>& g, int64_t lane) {
  for (int64_t k0 = 0; k0 == 0 || k0 < g.k; k0 += kDepth) {
    const int64_t k = g.k - k0 < kDepth ? g.k - k0 : kDepth;
    const Init init = k0 == 0 ? g.init : Init::Load;
    const T* start = g.init == Init::LoadScaled ? g.start + lane : g.start;
    const T* a = g.a + k0 * g.a_k;
    const T* b = g.b + k0 * g.b_row + lane;
    T* c = g.c + lane;
    int64_t i = sweep<T, kRowsFor<NV>, NV, KMajor>(g, a, b, c, k, init, start, 0);
    if constexpr (kRowsFor<NV> > 8) i = sweep<T, 8, NV, KMajor>(g, a, b, c, k, init, start, i);
    i = sweep<T, 4, NV, KMajor>(g, a, b, c, k, init, start, i);
    i = sweep<T, 2, NV, KMajor>(g, a, b, c, k, init, start, i);
    sweep<T, 1, NV, KMajor>(g, a, b, c, k, init, start, i);
  }
}

template <class T, bool KMajor>
void panels(const Gemm<T>& g) {
  constexpr int64_t W = kWidth<T>;
  int64_t lane = 0;
  for (; lane + kPanel * W <= g.lanes; lane += kPanel * W) panel<T, kPanel, KMajor>(g, lane);
  const int64_t left = (g.lanes - lane) / W;
  if constexpr (kPanel == 4) {
    if (left == 3) return panel<T, 3, KMajor>(g, lane);
    if (left == 2) return panel<T, 2, KMajor>(g, lane);
  }
  if (left == 1) panel<T, 1, KMajor>(g, lane);
}

template <class T>
void gemm(const Gemm<T>& g) {
  if (g.m <= 0) return;
  if (g.a_row == 1) {
    panels<T, true>(g);
  } else {
    panels<T, false>(g);
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
