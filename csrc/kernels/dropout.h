// Which weights dropout keeps: a counter-based random function of (call, batch, head, query, key).
//
// Each query row draws a 64-bit key with Philox 4x32-10; each pair of keys then mixes its index
// into it, and the halves of the result decide for the two. Source of Philox: Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", 2011.
#pragma once

#include "table.h"
#include "vec.h"

namespace multihead::MULTIHEAD_ISA {
namespace {

// N counters c[0..3] at once; what is left in them is random.
template <int N>
MULTIHEAD_INLINE void philox(uint32_t (*c)[N], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t a = uint64_t(0xD2511F53u) * c[0][i], b = uint64_t(0xCD9E8D57u) * c[2][i];
      c[0][i] = uint32_t(b >> 32) ^ c[1][i] ^ k0;
      c[2][i] = uint32_t(a >> 32) ^ c[3][i] ^ k1;
      c[1][i] = uint32_t(b);
      c[3][i] = uint32_t(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Of (counter, "multhead") under the seed.
inline DropoutKey dropout_key(uint64_t seed, uint64_t counter) {
  uint32_t c[4][1] = {{uint32_t(counter)}, {uint32_t(counter >> 32)}, {0x6D756C74u}, {0x68656164u}};
  philox<1>(c, uint32_t(seed), uint32_t(seed >> 32));
  return {{c[0][0], c[1][0]}};
}

inline void dropout_rows(DropoutRows* rows, DropoutKey key, uint32_t batch, uint32_t head,
                         uint64_t first_query) {
  uint32_t c[4][kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    const uint64_t query = first_query + uint64_t(i);
    c[0][i] = uint32_t(query);
    c[1][i] = uint32_t(query >> 32);
    c[2][i] = head;
    c[3][i] = batch;
  }
  philox<int(kTile)>(c, key.word[0], key.word[1]);
  for (int64_t i = 0; i < kTile; ++i) {
    rows->low[i] = c[0][i];
    rows->high[i] = c[1][i];
  }
}

// Both halves of one draw: words of the pair's even and odd key.
MULTIHEAD_INLINE void keep_pair(uint64_t* even, uint64_t* odd, const DropoutRows& rows,
                                int64_t lanes, uint32_t pair, uint32_t threshold) {
  constexpr int W = kWidth<uint32_t>;
  const uint32_t mixed = pair * 0x9E3779B9u;
  uint64_t low = 0, high = 0;
  for (int64_t lane = 0; lane < lanes; lane += W) {
    U32 x = load(rows.low + lane) ^ mixed;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x += load(rows.high + lane);
    x *= 0xD35A2D97u;
    x ^= x >> 15;
    low |= bits_at_least(x & 0xFFFFu, splat(threshold)) << lane;
    high |= bits_at_least(x >> 16, splat(threshold)) << lane;
  }
  *even = low;
  *odd = high;
}

inline void keep_bits(uint64_t* words, const DropoutRows& rows, int64_t lanes,
                      const uint32_t* indices, int64_t keys, uint32_t threshold) {
  if (threshold > 0xFFFFu) {
    for (int64_t c = 0; c < keys; ++c) words[c] = 0;
    return;
  }
  uint64_t drawn[2] = {};
  for (int64_t c = 0; c < keys; ++c) {
    if (c == 0 || indices[c] >> 1 != indices[c - 1] >> 1)
      keep_pair(&drawn[0], &drawn[1], rows, lanes, indices[c] >> 1, threshold);
    words[c] = drawn[indices[c] & 1];
  }
}

}  // namespace
}  // namespace multihead::MULTIHEAD_ISA
