// Weights as the left factor of a product: m rows of k elements. They are read where they lie, or
// copied into panels for the length of one call; nothing of them is kept between calls.
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

template <class T>
class Factor {
 public:
  Factor() = default;
  // Rows (h, d), features along k; a group of rows is a head.
  static Factor heads(const HeadWeights& weights);
  // Rows are features, (h, d) along k; a group is any part of them.
  static Factor features(const HeadWeights& weights, const View& bias);

  int64_t m() const { return m_; }
  int64_t k() const { return k_; }
  int64_t groups() const { return divide_up(m_, group_); }
  int64_t first_row(int64_t group) const { return group * group_; }
  int64_t rows(int64_t group) const { return smaller(m_ - group * group_, group_); }

  // Takes memory for a copy in panels where it pays for so many tokens, or where products cannot
  // read the weights as they lie. add_copy fills it, before the first product.
  void layout(Arena& arena, int64_t tokens);
  void add_copy(std::vector<Phase>& phases) const;

  // c[rows of the group][lanes] = the bias (c itself if `adds`) + rows . b, for the elements
  // [k0, k0 + depth) of k: k0 is a multiple of kDepth, and every product but the first adds.
  Gemm<T> product(int64_t group, int64_t k0, int64_t depth, const T* b, int64_t lanes, T* c,
                  bool adds, Ahead* ahead = nullptr) const;

 private:
  int64_t offset_of(int64_t k) const {  // within a row
    return piece_ == k_ ? k * k_stride_ : k / piece_ * piece_stride_ + k % piece_ * k_stride_;
  }

  const T* data_ = nullptr;
  int64_t m_ = 0, k_ = 0, group_ = 1;
  int64_t group_stride_ = 0, row_stride_ = 0;
  int64_t k_stride_ = 0, piece_ = 1, piece_stride_ = 0;  // k lies in pieces
  const T* bias_ = nullptr;
  int64_t bias_group_stride_ = 0, bias_stride_ = 0;
  bool copied_ = false;
  T* panels_ = nullptr;
};

// f(k0, depth) for each block of k: a block of the other factor stays in L1 meanwhile.
template <class F>
void for_depth(int64_t k, F f) {
  for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += kDepth) f(k0, smaller(k - k0, kDepth));
}

}  // namespace multihead
