// Masks as words: one per key, one bit per query of a tile, set where the key is visible.
#pragma once

#include "table.h"
#include "vec_half.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// Transposes a 64 x 64 matrix of bits in place.
inline void transpose_bits(uint64_t* x) {
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int d = 32; d; d >>= 1, mask ^= mask << d)
    for (int i = 0; i < 64; i = ((i | d) + 1) & ~d) {
      const uint64_t swap = ((x[i] >> d) ^ x[i | d]) & mask;
      x[i] ^= swap << d;
      x[i | d] ^= swap;
    }
}

inline void visible_bits(uint64_t* words, const uint8_t* const* rows, int64_t stride,
                         int64_t columns, bool true_hides) {
  const uint64_t flip = true_hides ? ~uint64_t(0) : 0;
  for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
    const int64_t n = columns - c0 < kTile ? columns - c0 : kTile;
    uint64_t x[kTile];
    for (int64_t r = 0; r < kTile; ++r) {
      const uint8_t* row = rows[r];
      uint64_t word = 0;
      if (!row) {
        x[r] = 0;
        continue;
      }
      if (stride == 1 && n == kTile) {
        for (int64_t c = 0; c < kTile; c += 8) {
          uint64_t bytes;
          __builtin_memcpy(&bytes, row + c0 + c, 8);
          // A byte that is not 0 becomes 1, then the product gathers the eight low bits.
          bytes |= bytes >> 4;
          bytes |= bytes >> 2;
          bytes |= bytes >> 1;
          bytes &= 0x0101010101010101ull;
          word |= (bytes * 0x0102040810204080ull >> 56) << c;
        }
      } else {
        for (int64_t c = 0; c < n; ++c) word |= uint64_t(row[(c0 + c) * stride] != 0) << c;
      }
      x[r] = word ^ flip;
    }
    transpose_bits(x);
    for (int64_t c = 0; c < n; ++c) words[c0 + c] = x[c];
  }
}

template <class T, class S>
bool visible_bits_in(uint64_t* words, const S* const* rows, int64_t stride, int64_t columns) {
  constexpr int W = kWidth<T>;
  constexpr T lowest = -kInfinity<T>;
  uint64_t x[kTile], adds = 0;
  for (int64_t r = 0; r < kTile; ++r) {
    const S* row = rows[r];
    uint64_t word = 0;
    int64_t c = 0;
    if (row && stride == 1) {
      for (; c + W <= columns; c += W) {
        const Vec<T> v = load(row + c);
        const uint64_t visible = bits_of(Bits<T>(v != splat(lowest)));
        word |= visible << c;
        adds |= visible & bits_of(Bits<T>(v != Vec<T>{}));
      }
    }
    for (; row && c < columns; ++c) {
      const T v = widen(row[c * stride]);
      word |= uint64_t(v != lowest) << c;
      adds |= uint64_t(v != lowest && v != T(0));
    }
    x[r] = word;
  }
  transpose_bits(x);
  for (int64_t c = 0; c < columns; ++c) words[c] = x[c];
  return adds != 0;
}

template <class T>
bool visible_bits_additive(uint64_t* words, const SourceRows& rows, int64_t columns) {
  return Stored<T>::as(rows.type, [&]<class S>() {
    return visible_bits_in<T>(words, reinterpret_cast<const S* const*>(rows.at), rows.stride,
                              columns);
  });
}

// What is finite stays finite, and what is smaller stays smaller: where the product would come near
// the end of the range, as much of that as there is left is spread over the masks beyond.
template <class T>
void additive_to_log2(T* values, int64_t n) {
  constexpr T kLog2E = T(1.4426950408889634), near = kLargest<T> / 2;
  constexpr T slope = (kLargest<T> - near * kLog2E) / (kLargest<T> - near);
  for (int64_t i = 0; i < n; ++i) {
    const T x = values[i], size = x < 0 ? -x : x;
    T y = near * kLog2E + (size - near) * slope;
    y = y > kLargest<T> && size < kInfinity<T> ? kLargest<T> : y;
    values[i] = size <= near ? x * kLog2E : x < 0 ? -y : y;
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
