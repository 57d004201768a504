// Where the rows of tokens lie in the caller's arrays: rows side by side, or those that padding
// left.
#pragma once

#include "plan.h"

namespace multihead {

// Tokens of one sequence, or of one of its heads.
template <class E>
struct TokenRows {
  E* base = nullptr;
  int64_t row_stride = 0, stride = 0;  // of tokens, of features
  const int32_t* positions = nullptr;  // of the tokens that count; null: all of them

  // No address is formed from an array without memory.
  constexpr E* row(int64_t token) const {
    return base ? base + (positions ? positions[token] : token) * row_stride : nullptr;
  }
  // Pointers to the tokens of a tile, null after the last one; returns their number.
  int64_t tile(int64_t tile, int64_t tokens, E** rows) const {
    const int64_t n = tile_tokens(tokens, tile);
    for (int64_t i = 0; i < kTile; ++i) rows[i] = i < n ? row(tile * kTile + i) : nullptr;
    return n;
  }
};

static_assert(TokenRows<float>{.row_stride = 1}.row(1) == nullptr);

// Of an array of tokens: (N, tokens, features), or (total, features) when ragged.
template <class E>
TokenRows<E> token_rows(const View& v, const Sequence& s, int64_t batch, Tokens of) {
  if (!v.data) return {};
  const int64_t first = of == Tokens::Queries ? s.first_query : s.first_key;
  const int64_t row_stride = v.stride[v.rank - 2];
  return {v.as<E>() + (v.rank == 3 ? v.at(batch) : 0) + first * row_stride, row_stride,
          v.stride[v.rank - 1], of == Tokens::Keys ? s.positions : nullptr};
}

// Of one head of an array (N, H, tokens, features).
template <class E>
TokenRows<E> head_rows(const View& v, int64_t batch, int64_t head) {
  if (!v.data) return {};
  return {v.as<E>() + v.at(batch, head), v.stride[2], v.stride[3], nullptr};
}

}  // namespace multihead
