// Which keys each query sees: causality, windows, padding and the attention mask, which is read
// once and then asked tile by tile; and which weights dropout keeps.
#pragma once

#include "arena.h"
#include "plan.h"
#include "thread_pool.h"

namespace multihead {

constexpr uint32_t kBiasKeyIndex = 0xFFFFFFFEu, kZeroRowIndex = 0xFFFFFFFFu;

// What a tile of scores is subject to.
template <class E>
struct TileMask {
  const uint64_t* visible = nullptr;  // null: everything
  const Acc<E>* bias = nullptr;       // null: nothing is added
  const Acc<E>* key_bias = nullptr;
  const Acc<E>* distance = nullptr;  // from the first query to each key; null: it does not matter
  const uint64_t* keep = nullptr;    // null: nothing is dropped
};

// Memory of one worker for the tile at hand.
template <class E>
struct TileScratch {
  uint64_t visible[kTile], keep[kTile];
  uint32_t indices[kTile];
  Acc<E> distance[kTile];
  Acc<E> bias[kTile * kTile];
};

// Tiles of keys, in order.
struct KeyRange {
  int64_t begin, end;
};

template <class E>
class Masks {
 public:
  Masks(const Plan& plan, const KernelSet& set, const Kernels<E>& kernels,
        const AttentionSpec& spec);

  // Memory for the words and kinds of the mask, and for what padding adds.
  void layout(Arena& arena);
  void add_reading(std::vector<Phase>& phases);  // the masks become words

  // The tiles that some query of a block may see; what they hide is told by `tile`.
  KeyRange range(const TileAt& at) const;
  // Fills `mask` for one tile; false where the tile is hidden as a whole. `rows` are the random
  // keys of the queries' tile.
  bool tile(const TileAt& at, const DropoutRows& rows, TileScratch<E>& scratch,
            TileMask<E>& mask) const;
  void dropout_rows(const TileAt& at, DropoutRows& rows) const;
  double keep_scale() const { return drops_ ? rules_.dropout.keep_scale() : 1.0; }
  bool drops() const { return drops_; }
  // Whether a tile is another one for each head.
  bool by_head() const { return drops_ || (rules_.mask && slice_heads_ > 1); }

 private:
  enum Kind : uint8_t { kHidden = 0, kSome = 1, kAll = 2, kAdds = 4 };

  // Words and kinds of one tile of queries.
  struct QueryRow {
    const uint64_t* words = nullptr;
    const uint8_t* kinds = nullptr;
  };

  // Where the first query of a tile stands among the keys.
  int64_t position(const TileAt& at) const {
    return at.sequence.first_position + at.query_tile * kTile + rules_.offsets.query -
           rules_.offsets.key;
  }
  QueryRow query_row(const TileAt& at) const;
  void mask_rows(int64_t batch, int64_t head, int64_t tile, void** rows) const;
  void read_queries(int64_t task);
  void read_padding(int64_t sequence);
  void load_bias(const TileAt& at, Acc<E>* bias) const;
  void draw(const TileAt& at, const DropoutRows& rows, TileScratch<E>& scratch) const;

  const Plan& plan_;
  const KernelSet& set_;
  const Kernels<E>& kernels_;
  const ScoreRules& rules_;
  const BatchShape& shape_;
  // The keys that a query sees beside its own place.
  static constexpr int64_t kAny = int64_t(1) << 60;
  int64_t left_ = kAny, right_ = kAny;
  bool drops_;
  DropoutKey dropout_key_{};
  bool padding_is_float_ = false;
  Acc<E>* key_bias_ = nullptr;       // what padding adds, like the key lanes
  uint8_t* padding_adds_ = nullptr;  // of each sequence: whether that is more than 0
  // Of each slice of the mask: words [query tile][key], kinds [query tile][key tile].
  int64_t slices_ = 0, slice_heads_ = 1, query_tiles_ = 0, key_tiles_ = 0;
  uint64_t* words_ = nullptr;
  uint8_t* kinds_ = nullptr;
};

}  // namespace multihead
