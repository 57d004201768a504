// How a batch is laid out: its sequences, the keys that padding leaves, and where their tiles lie.
//
// Tokens are padded to a multiple of 16 lanes, 64 lanes to a tile. With F features, the tile t of
// a sequence of n tokens that begins at lane b is [F][width] at (b + 64 t) F ("by tile"); keys
// and values lie by head, [H][n rounded up][F / H], so that one head is read front to back.
#pragma once

#include <vector>

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

constexpr int64_t tiles_of(int64_t tokens) { return divide_up(tokens, kTile); }
constexpr int64_t tile_tokens(int64_t tokens, int64_t tile) {
  return smaller(tokens - tile * kTile, kTile);
}
constexpr int64_t tile_lanes(int64_t tokens, int64_t tile) {
  return round_up(tile_tokens(tokens, tile), kLane);
}

struct Sequence {
  int64_t queries;
  int64_t keys;                    // that padding leaves
  int64_t source;                  // keys before padding was dropped
  int64_t first_query, first_key;  // rows of a ragged array; 0 in a dense one
  int64_t query_lane, key_lane;    // where its tiles begin
  int64_t weights;                 // where its attention weights begin
  const int32_t* positions;        // of its keys; null: key j is at position j
};

struct TileRef {
  int32_t sequence, tile;
};

struct Plan {
  int64_t heads = 0, head_dim = 0, value_dim = 0;
  bool bias_key = false, zero_row = false;  // rows behind the keys of every sequence
  std::vector<Sequence> sequences;
  std::vector<int32_t> positions;
  int64_t query_lanes = 0, key_lanes = 0;
  std::vector<TileRef> query_tiles, key_tiles;  // key tiles that hold real keys

  // Where each sequence's part of something begins, n(sequence) long, and behind them the end.
  template <class F>
  std::vector<int64_t> begins(F n) const {
    std::vector<int64_t> begin{0};
    begin.reserve(sequences.size() + 1);
    for (const Sequence& s : sequences) begin.push_back(begin.back() + n(s));
    return begin;
  }

  int64_t extra() const { return int64_t(bias_key) + int64_t(zero_row); }
  int64_t rows(const Sequence& s) const { return s.keys + extra(); }  // keys attended to

  // Offsets of one head's part of a tile, with `dim` features a head.
  int64_t query_tile(const Sequence& s, int64_t head, int64_t tile, int64_t dim) const {
    return ((s.query_lane + tile * kTile) * heads + head * tile_lanes(s.queries, tile)) * dim;
  }
  int64_t key_tile(const Sequence& s, int64_t head, int64_t tile, int64_t dim) const {
    return ((s.key_lane + tile * kTile) * heads + head * tile_lanes(rows(s), tile)) * dim;
  }
  int64_t key_tile_by_head(const Sequence& s, int64_t head, int64_t tile, int64_t dim) const {
    return (s.key_lane * heads + head * round_up(rows(s), kLane) + tile * kTile) * dim;
  }
  // Offset of the values that a head keeps for each query.
  int64_t query_row(const Sequence& s, int64_t head, int64_t tile) const {
    return s.query_lane * heads + head * round_up(s.queries, kLane) + tile * kTile;
  }
};

// What decides the plan of a call.
struct BatchShape {
  int64_t batch = 0, queries = 0, keys = 0;                        // of a ragged batch: the longest
  const int64_t *query_offsets = nullptr, *key_offsets = nullptr;  // ragged: [batch + 1]
  View key_padding;          // (N, S), hides where true or -inf
  int64_t weight_heads = 0;  // heads in the returned weights: 0, 1 or H
};

void make_plan(Plan& plan, const BatchShape& shape);

// The padding mask as an additive value per key, in log2 units, laid out like the key lanes.
// Returns false (and leaves values alone) where it adds nothing to the keys it leaves.
template <class T>
bool padding_bias(const Plan& plan, const BatchShape& shape, T* values);
bool padding_adds(const BatchShape& shape);

enum class Tokens { Queries, Keys };

// The rows of an array of tokens: (N, tokens, features), or (total, features) when ragged.
template <class T>
struct Rows {
  T* base;
  int64_t batch_stride, row_stride, stride;

  Rows() = default;
  explicit Rows(const View& v)
      : base(v.as<T>()),
        batch_stride(v.rank == 3 ? v.stride[0] : 0),
        row_stride(v.stride[v.rank - 2]),
        stride(v.stride[v.rank - 1]) {}

  constexpr T* row(int64_t batch, int64_t row) const {
    return base ? base + batch * batch_stride + row * row_stride : nullptr;
  }

  // Pointers to the tokens of a tile, null behind the last one; returns their number.
  int64_t of_queries(const Plan& plan, TileRef at, T** rows) const {
    const Sequence& s = plan.sequences[size_t(at.sequence)];
    const int64_t n = tile_tokens(s.queries, at.tile);
    for (int64_t i = 0; i < kTile; ++i)
      rows[i] = i < n ? row(at.sequence, s.first_query + at.tile * kTile + i) : nullptr;
    return n;
  }
  int64_t of_keys(const Plan& plan, TileRef at, T** rows) const {
    const Sequence& s = plan.sequences[size_t(at.sequence)];
    const int64_t n = tile_tokens(s.keys, at.tile);
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t key = at.tile * kTile + i;
      rows[i] =
          i < n ? row(at.sequence, s.first_key + (s.positions ? s.positions[key] : key)) : nullptr;
    }
    return n;
  }
};

constexpr bool no_address_from_nothing() {
  Rows<float> absent{};
  absent.row_stride = 1;
  return !absent.row(0, 1);
}
static_assert(no_address_from_nothing());

}  // namespace multihead
