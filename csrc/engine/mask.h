// Which keys each query sees: the attention mask read once, then asked tile by tile.
#pragma once

#include "arena.h"
#include "plan.h"
#include "thread_pool.h"

namespace multihead {

// Dropout of one call.
struct Dropout {
  double p = 0;
  uint64_t seed = 0, counter = 0;

  uint32_t threshold() const;  // weights whose 16 random bits are below it are dropped
  double keep_scale() const;   // 1 / (1 - p), of the p that the threshold stands for
};

constexpr uint32_t kBiasKeyIndex = 0xFFFFFFFEu, kZeroRowIndex = 0xFFFFFFFFu;

// Where a part of a larger problem lies in the whole: added to local indices wherever a position
// matters, in causality and in dropout.
struct Offsets {
  int64_t batch = 0, head = 0, query = 0, key = 0;
};

// What a tile of scores is subject to.
template <class T>
struct TileMask {
  const uint64_t* visible;  // null: everything
  const T* bias;            // null: nothing is added
  const T* key_bias;
  const uint64_t* keep;  // null: nothing is dropped
};

// Memory of one worker for the tile at hand.
template <class T>
struct TileScratch {
  uint64_t visible[kTile], keep[kTile];
  uint32_t indices[kTile];
  T bias[kTile * kTile];
};

template <class T>
class Masks {
 public:
  // attn_mask: broadcast to (N, H, L, S), or absent. true_hides: what a boolean mask means.
  Masks(const Plan& plan, const Kernels<T>& kernels, const View& attn_mask, bool true_hides,
        bool causal, const Dropout& dropout, const Offsets& offsets);

  void layout(Arena& arena, const BatchShape& shape);  // memory for words and kinds
  void add_phases(std::vector<Phase>& phases, const KernelSet& set);
  void set_padding(const T* key_bias) { key_bias_ = key_bias; }

  // Fills `mask` for one tile; false where the tile is hidden as a whole. `rows` are the random
  // keys of the queries' tile.
  bool tile(const Sequence& s, int64_t batch, int64_t head, int64_t query_tile, int64_t key_tile,
            const DropoutRows& rows, TileScratch<T>& scratch, TileMask<T>& mask) const;
  void dropout_rows(int64_t batch, int64_t head, int64_t query_tile, DropoutRows& rows) const;
  double keep_scale() const { return drops_ ? dropout_.keep_scale() : 1.0; }
  bool drops() const { return drops_; }

 private:
  enum Kind : uint8_t { kHidden = 0, kSome = 1, kAll = 2, kAdds = 4 };

  int64_t slice(int64_t batch, int64_t head) const {
    return (mask_.stride[0] ? batch : 0) * slice_heads_ + (mask_.stride[1] ? head : 0);
  }
  const T* mask_rows(int64_t batch, int64_t head, int64_t query_tile, int64_t queries,
                     const T** rows) const;
  void read(int64_t task);
  void load_bias(const Sequence& s, int64_t batch, int64_t head, int64_t query_tile,
                 int64_t key_tile, T* bias) const;

  const Plan& plan_;
  const Kernels<T>& kernels_;
  const KernelSet* set_ = nullptr;
  View mask_;
  bool true_hides_, causal_, drops_;
  Dropout dropout_;
  uint32_t call_key_[2];
  Offsets offsets_;
  const T* key_bias_ = nullptr;
  // Of each slice of the mask: words [query tile][key], kinds [query tile][key tile].
  int64_t slices_ = 0, slice_heads_ = 1, query_tiles_ = 0, keys_ = 0, key_tiles_ = 0;
  uint64_t* words_ = nullptr;
  uint8_t* kinds_ = nullptr;
};

}  // namespace multihead
