// Weights as the left factor of a product: m rows of k elements. They are read where they lie, or
// packed for the length of one call, into panels or, where E rounds, into rows; nothing of them is
// kept between calls.
#pragma once

#include "../kernels/table.h"
#include "arena.h"
#include "thread_pool.h"
#include "view.h"

namespace multihead {

// Weights of H heads, (H, D, features), and their bias (H, D); features of out_proj come first
// in memory, but the axes are the same.
struct HeadWeights {
  View weight, bias;
};

template <class E>
class PackedWeights {
 public:
  static constexpr int64_t kFeatureGroup = 16 * kPanelRows;

  // Rows (h, d), features along k; a group of rows is a head.
  static PackedWeights by_head(const HeadWeights& weights, const Kernels<E>& kernels);
  // Rows are features, (h, d) along k; a group is any part of them.
  static PackedWeights by_feature(const HeadWeights& weights, const View& bias,
                                  const Kernels<E>& kernels);

  int64_t m() const { return m_; }
  int64_t k() const { return k_; }  // as a tile of them has rows
  int64_t groups() const { return divide_up(m_, group_); }
  int64_t first_row(int64_t group) const { return group * group_; }
  int64_t rows(int64_t group) const { return smaller(m_ - group * group_, group_); }

  // Takes memory for panels where they pay for so many tokens, or where products cannot read the
  // weights as they lie or are stored. add_packing fills it, before the first product.
  void layout(Arena& arena, int64_t tokens);
  void add_packing(std::vector<Phase>& phases, const Kernels<E>& kernels) const;

  // One block of k: [k0, k0 + depth) with k0 a multiple of kDepth. Every product after the first
  // adds to what that left.
  struct Depth {
    int64_t first, count;
  };
  // c = the bias (c itself if `adds`) + rows of the group . b, where b is the tile from its row
  // depth.first on.
  TileGemm<E> product(int64_t group, Depth depth, const E* b, int64_t lanes, Acc<E>* c,
                      bool adds) const;
  // The rows of a group where they lie, if they do so side by side, and where its bias lies.
  struct Rows {
    StoredRows rows{};
    const Acc<E>* bias = nullptr;
    bool found = false;
  };
  Rows rows_in_place(int64_t group) const;

 private:
  // Of an element of k within a row; -1: there is none, a tile has a row of zeros there.
  int64_t offset_of(int64_t k) const {
    if (in_place_) return k * k_stride_;
    const int64_t inside = k % padded_piece_;
    return inside < piece_ ? k / padded_piece_ * piece_stride_ + inside * k_stride_ : -1;
  }
  void pack_block(int64_t task, const Kernels<E>& kernels) const;
  static constexpr int64_t kRows = 16;  // taken at once
  struct Square {
    int64_t row, rows, k, depth;
  };
  bool lies_right() const;
  void pack_rounded(int64_t task, const Kernels<E>& kernels) const;
  void pack_square(const Kernels<E>& kernels, int64_t group, const Square& at, E* to) const;
  template <class S>
  void pack_rows(const S* from, E* to, int64_t n, int64_t k0, int64_t depth) const;
  void pack_stored(const Kernels<E>& kernels, int64_t group, E* to, int64_t k0,
                   int64_t depth) const;
  void widen_columns(int64_t task, const Kernels<E>& kernels) const;
  void widen_bias() const;

  LeftLayout left_;
  View weight_;
  int64_t m_ = 0, k_ = 0, group_ = 1;
  int64_t group_stride_ = 0, row_stride_ = 0, k_stride_ = 0;
  // k lies in pieces, which a tile may fill up with rows of zeros
  int64_t piece_ = 1, padded_piece_ = 1, piece_stride_ = 0;
  bool in_place_ = false;  // whether products can read the weights where they lie
  View bias_;
  int64_t bias_group_stride_ = 0, bias_stride_ = 0;
  Acc<E>* wide_bias_ = nullptr;  // a copy, where it is of another type than is computed in
  E* wide_ = nullptr;            // likewise, where they lie by columns: [k_][m_]
  bool packed_ = false;
  E* packed_rows_ = nullptr;
};

// f(depth) for each block of k: a block of the other factor stays in L1 meanwhile. Sums that are no
// tiles hold all of k at once.
template <class E, class F>
void for_depth(const PackedWeights<E>& w, bool sums_are_tiles, F f) {
  const int64_t step = sums_are_tiles ? kDepth : larger(w.k(), 1);
  for (int64_t k0 = 0; k0 == 0 || k0 < w.k(); k0 += step)
    f(typename PackedWeights<E>::Depth{k0, smaller(w.k() - k0, step)});
}

}  // namespace multihead
