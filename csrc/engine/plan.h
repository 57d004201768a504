// How a batch is laid out: its sequences, the keys that padding leaves, and where their tiles lie.
//
// Tokens are padded to a multiple of 16 lanes, 64 lanes to a tile. Arrays of queries, and of
// gradients, lie by tile: the tiles of all heads for 64 tokens, then for the next 64. Keys and
// values lie by head: all tiles of one head, which is read front to back. What a tile looks like
// inside is the kernel set's business.
#pragma once

#include <vector>

#include "../kernels/table.h"
#include "spec.h"

namespace multihead {

constexpr int64_t tiles_of(int64_t tokens) { return divide_up(tokens, kTile); }
constexpr int64_t tile_tokens(int64_t tokens, int64_t tile) {
  return smaller(tokens - tile * kTile, kTile);
}
constexpr int64_t tile_lanes(int64_t tokens, int64_t tile) {
  return round_up(tile_tokens(tokens, tile), kLane);
}

enum class Tokens { Queries, Keys };

struct Sequence {
  int64_t queries;
  int64_t keys;                    // that padding leaves
  int64_t attended_keys;           // and those after them: bias_k's, the zero row
  int64_t source_keys;             // before padding was dropped
  int64_t first_query, first_key;  // rows of a ragged array; 0 in a dense one
  int64_t query_lane, key_lane;    // where its tiles begin
  int64_t pairs;                   // of queries and keys in the sequences before, for weights
  int64_t first_position;          // of its queries
  const int32_t* positions;        // of its keys; null: key j is at position j

  int64_t query_tiles() const { return tiles_of(queries); }
  int64_t key_tiles() const { return tiles_of(attended_keys); }
  int64_t tokens(Tokens of) const { return of == Tokens::Queries ? queries : keys; }
  int64_t position(int64_t key) const { return positions ? positions[key] : key; }
  int64_t keys_before(int64_t position) const;
  // The column of a key in weights: those after the keys follow all source keys.
  int64_t column(int64_t key) const {
    return key < keys ? position(key) : source_keys + key - keys;
  }
};

// A place in a batch: a head's tile of queries, and of the keys that serve it.
struct TileAt {
  const Sequence& sequence;
  int64_t batch, head, query_tile, key_tile = 0;

  int64_t queries() const { return tile_tokens(sequence.queries, query_tile); }
  int64_t query_lanes() const { return tile_lanes(sequence.queries, query_tile); }
  int64_t keys() const { return tile_tokens(sequence.attended_keys, key_tile); }
  int64_t key_lanes() const { return tile_lanes(sequence.attended_keys, key_tile); }
  int64_t first_key() const { return key_tile * kTile; }
  // Keys of the tile that are the caller's: those after them come last.
  int64_t given_keys() const { return larger(0, smaller(sequence.keys - first_key(), keys())); }
  TileAt with_keys(int64_t tile) const { return {sequence, batch, head, query_tile, tile}; }
};

struct TileRef {
  int32_t sequence, tile;
};

struct Plan {
  Heads heads;
  TileLayout layout;
  bool bias_key = false, zero_row = false;
  std::vector<Sequence> sequences;
  int64_t query_lanes = 0, key_lanes = 0;
  std::vector<TileRef> query_tiles, key_tiles;  // key tiles that hold the caller's keys

  // For sizes alone, of a dense batch without padding: as one whose sequences are not listed, in
  // the same time for any number of them.
  enum class For { Call, Sizes };
  Plan(const AttentionSpec& spec, TileLayout layout, For what = For::Call);
  Plan(const Plan&) = delete;  // sequences point into positions
  Plan& operator=(const Plan&) = delete;

  // About how many multiplications the whole layer takes.
  int64_t work() const;
  int64_t extra_keys() const { return int64_t(bias_key) + int64_t(zero_row); }
  const std::vector<TileRef>& tiles(Tokens of) const {
    return of == Tokens::Queries ? query_tiles : key_tiles;
  }
  const Sequence& sequence(TileRef at) const { return sequences[size_t(at.sequence)]; }

  // Elements of an array of tiles with `dim` features a head.
  int64_t query_elements(int64_t dim) const { return query_lanes * heads.count * layout.rows(dim); }
  int64_t key_elements(int64_t dim) const { return key_lanes * heads.key_count * layout.rows(dim); }

  int64_t key_head(const TileAt& at) const { return at.head / heads.group(); }

  // Offsets of one head's part of a tile, with `dim` features a head.
  int64_t query_tile(const TileAt& at, int64_t dim) const {
    const Sequence& s = at.sequence;
    return ((s.query_lane + at.query_tile * kTile) * heads.count + at.head * at.query_lanes()) *
           layout.rows(dim);
  }
  int64_t key_tile(const TileAt& at, int64_t dim) const {
    const Sequence& s = at.sequence;
    return ((s.key_lane + at.first_key()) * heads.key_count + key_head(at) * at.key_lanes()) *
           layout.rows(dim);
  }
  int64_t key_tile_by_head(const TileAt& at, int64_t dim) const {
    const Sequence& s = at.sequence;
    return (s.key_lane * heads.key_count + key_head(at) * round_up(s.attended_keys, kLane) +
            at.first_key()) *
           layout.rows(dim);
  }
  // Offset of the values that a head keeps for each query.
  int64_t query_row(const TileAt& at) const {
    const Sequence& s = at.sequence;
    return s.query_lane * heads.count + at.head * round_up(s.queries, kLane) +
           at.query_tile * kTile;
  }

  // Where each sequence's part of something begins, n(sequence) long, and after them the end.
  template <class F>
  std::vector<int64_t> begins(F n) const {
    std::vector<int64_t> begin{0};
    begin.reserve(sequences.size() + 1);
    for (const Sequence& s : sequences) begin.push_back(begin.back() + n(s));
    return begin;
  }

 private:
  std::vector<int32_t> positions_;
};

}  // namespace multihead
