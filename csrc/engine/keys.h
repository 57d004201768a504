// Where the rows of tokens lie in the caller's arrays: rows side by side, or those that padding
// left.
#pragma once

#include "plan.h"

namespace multihead {

// Tokens of one sequence, or of one of its heads.
struct TokenRows {
  char* base = nullptr;
  int64_t row_bytes = 0, stride = 0;  // of tokens, of features: in elements
  DType type = DType::Float32;
  const int32_t* positions = nullptr;  // of the tokens that count; null: all of them

  // No address is formed from an array without memory.
  constexpr char* row(int64_t token) const {
    return base ? base + (positions ? positions[token] : token) * row_bytes : nullptr;
  }
  // Pointers to the tokens of a tile, null after the last one; returns their number.
  int64_t tile(int64_t tile, int64_t tokens, void** rows) const {
    const int64_t n = tile_tokens(tokens, tile);
    for (int64_t i = 0; i < kTile; ++i) rows[i] = i < n ? row(tile * kTile + i) : nullptr;
    return n;
  }
  SourceRows source(void* const* rows) const { return {rows, stride, type}; }
  TargetRows target(void* const* rows) const { return {rows, stride, type}; }
  // All rows from one on, where they lie side by side.
  StoredRows stored(int64_t token) const { return {row(token), row_bytes / item(), type}; }
  int64_t item() const { return item_bytes(type); }
};

static_assert(TokenRows{.row_bytes = 1}.row(1) == nullptr);

// Of an array of tokens: (N, tokens, features), or (total, features) when ragged.
inline TokenRows token_rows(const View& v, const Sequence& s, int64_t batch, Tokens of) {
  if (!v.data) return {};
  const int64_t first = of == Tokens::Queries ? s.first_query : s.first_key;
  const int64_t row_stride = v.stride[v.rank - 2];
  return {
      .base = static_cast<char*>(v.address((v.rank == 3 ? v.at(batch) : 0) + first * row_stride)),
      .row_bytes = row_stride * item_bytes(v.dtype),
      .stride = v.stride[v.rank - 1],
      .type = v.dtype,
      .positions = of == Tokens::Keys ? s.positions : nullptr};
}

// Of one head of an array (N, H, tokens, features).
inline TokenRows head_rows(const View& v, int64_t batch, int64_t head) {
  if (!v.data) return {};
  return {.base = static_cast<char*>(v.address(v.at(batch, head))),
          .row_bytes = v.stride[2] * item_bytes(v.dtype),
          .stride = v.stride[3],
          .type = v.dtype};
}

// Of one sequence: those of a ragged batch lie one after another.
inline TokenRows head_rows(const View& v, const Sequence& s, Tokens of, int64_t batch,
                           int64_t head) {
  TokenRows rows = head_rows(v, batch, head);
  if (rows.base)
    rows.base += (of == Tokens::Queries ? s.first_query : s.first_key) * rows.row_bytes;
  return rows;
}

}  // namespace multihead
