// A kernel set whose tiles hold pairs: two features of a token lie together, and two tokens of the
// panels that products over tokens read. It converts to the plain layout and back around the plain
// kernels, so its bits are theirs, and it stops where what fills up a pair is not 0.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "../../csrc/kernels/table.h"

namespace multihead {

const KernelSet& plain_kernels();
const KernelSet& wide_kernels();
const KernelSet& emulated_dot_kernels();
const KernelSet& emulated_amx_kernels();

namespace grouped {
namespace {

constexpr TileLayout kLayout{.group = 2};
constexpr int64_t kGroup = kLayout.group;

void require(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "kernel set 'grouped': %s\n", what);
  abort();
}

template <class E>
const Kernels<E>& plain();
template <>
const Kernels<float>& plain<float>() {
  return *plain_kernels().f32;
}
template <>
const Kernels<double>& plain<double>() {
  return *plain_kernels().f64;
}

// A tile as the plain kernels want it, features or tokens in rows of `width`: a copy of a paired
// one, or one yet to be written, which `store` then turns into pairs.
template <class E>
class Plain {
 public:
  Plain(int64_t rows, int64_t width)
      : rows_(rows), width_(width), data_(size_t(kLayout.size(rows, width))) {}
  Plain(const E* pairs, int64_t rows, int64_t width) : Plain(pairs, rows, width, width) {}
  // What lies in lanes from `used` on is nothing.
  Plain(const E* pairs, int64_t rows, int64_t width, int64_t used) : Plain(rows, width) {
    for (int64_t r = 0; r < kLayout.rows(rows); ++r)
      for (int64_t i = 0; i < width; ++i) {
        if (i >= used) {
          data_[size_t(r * width + i)] = E(__builtin_nan(""));
          continue;
        }
        const E x = pairs[kLayout.at(r, i, rows, width)];
        if (r >= rows) require(x == 0, "what fills up the last pair of a tile is not 0");
        data_[size_t(r * width + i)] = x;
      }
  }

  void store(E* pairs) const {
    for (int64_t r = 0; r < kLayout.rows(rows_); ++r)
      for (int64_t i = 0; i < width_; ++i)
        pairs[kLayout.at(r, i, rows_, width_)] = r < rows_ ? data_[size_t(r * width_ + i)] : E(0);
  }
  const E* begin() const { return data_.data(); }
  E* data() { return data_.data(); }
  operator E*() { return data_.data(); }

 private:
  int64_t rows_, width_;
  std::vector<E> data_;
};

template <class E>
void tile_gemm(const TileGemm<E>& g) {
  if (g.m <= 0) return;
  require(g.k % kGroup == 0, "tile_gemm: k is not a multiple of the group");
  Plain<E> b(g.b, g.k, g.lanes);
  TileGemm<E> inner = g;
  inner.b = b;
  plain<E>().tile_gemm(inner);
}

template <class E>
void token_gemm(const TokenGemm<E>& g) {
  Plain<E> b(g.b, g.tokens, g.columns);
  TokenGemm<E> inner = g;
  inner.b = b;
  plain<E>().token_gemm(inner);
}

template <class E>
void pack(E* tile, int64_t lanes, const SourceRows& rows, int64_t features, TileOf what) {
  Plain<E> to(features, lanes);
  plain<E>().pack(to, lanes, rows, features, what);
  to.store(tile);
}

template <class E>
void unpack(const TargetRows& rows, const E* tile, int64_t lanes, int64_t features,
            bool accumulate) {
  Plain<E> from(tile, features, lanes);
  plain<E>().unpack(rows, from, lanes, features, accumulate);
}

template <class E>
void gather_tokens(E* panel, int64_t pitch, const SourceRows& rows, int64_t columns,
                   int64_t tokens) {
  Plain<E> to(tokens, pitch);
  plain<E>().gather_tokens(to, pitch, rows, columns, tokens);
  to.store(panel);
}

template <class E>
void tile_to_rows(E* dst, int64_t pitch, const E* tile, int64_t lanes, int64_t features,
                  Acc<E> scale) {
  Plain<E> from(tile, features, lanes), to(lanes, pitch);
  plain<E>().tile_to_rows(to, pitch, from, lanes, features, scale);
  to.store(dst);
}

template <class E>
void rows_to_tile(E* tile, int64_t lanes, const Acc<E>* rows, int64_t pitch, int64_t count,
                  int64_t features, Acc<E> scale) {
  Plain<E> to(features, lanes);
  plain<E>().rows_to_tile(to, lanes, rows, pitch, count, features, scale);
  to.store(tile);
}

template <class E>
void tile_of_sums(E* tile, const Acc<E>* sums, int64_t lanes, int64_t features, TileOf) {
  Plain<E> to(features, lanes);
  for (int64_t i = 0; i < features * lanes; ++i) to[i] = sums[i];
  to.store(tile);
}

// The tokens of the features that a task sums, which need not end with a tile's.
template <class E>
const E* feature_rows(E*, int64_t& pitch, const E* tile, int64_t lanes, int64_t features, int64_t) {
  static thread_local std::vector<E> rows;
  const Plain<E> from(tile, features, lanes);
  rows.assign(from.begin(), from.begin() + features * lanes);
  pitch = lanes;
  return rows.data();
}

template <class E>
void column_sums(Acc<E>* sums, const E* panel, int64_t pitch, int64_t tokens, int64_t columns) {
  plain<E>().column_sums(sums, Plain<E>(panel, tokens, pitch), pitch, tokens, columns);
}

template <class E>
void delta(Stat<E>* result, const E* a, const E* b, int64_t features, int64_t lanes) {
  plain<E>().delta(result, Plain<E>(a, features, lanes), Plain<E>(b, features, lanes), features,
                   lanes);
}

// A block whose tiles are plain.
template <class E, class B>
struct PlainBlock {
  Plain<E> q, k, v;
  B block;

  explicit PlainBlock(const B& t)
      : q(t.q, t.head_dim, t.lanes),
        k(t.k.data, t.head_dim, t.key_lanes, t.keys),
        v(t.v.data, t.value_dim, t.key_lanes, t.keys),
        block(t) {
    block.q = q;
    block.k = {k};
    block.v = {v};
  }
  // Scores and probabilities are the set's own, unless it says otherwise.
  void spoil(Acc<E>* x) const {
    for (int64_t i = 0; i < block.keys * block.lanes; ++i) x[i] = Acc<E>(__builtin_nan(""));
  }
};

template <class E>
void forward_block(const ForwardBlock<E>& t) {
  PlainBlock<E, ForwardBlock<E>> inner(t);
  plain<E>().forward_block(inner.block);
  inner.spoil(t.s);
  inner.spoil(t.p);
}

template <class E>
void forward_end(const ForwardBlock<E>& t, Acc<E> keep_scale, E* out) {
  Plain<E> to(t.value_dim, t.lanes);
  plain<E>().forward_end(t, keep_scale, to);
  to.store(out);
}

template <class E>
void score_gradients(const BackwardBlock<E>& t) {
  PlainBlock<E, BackwardBlock<E>> inner(t);
  Plain<E> d_out(t.d_out, t.value_dim, t.lanes);
  inner.block.d_out = d_out;
  inner.block.v_tokens = inner.block.v;
  plain<E>().score_gradients(inner.block);
  inner.spoil(t.p);
}

template <class E>
void backward_block(const BackwardBlock<E>& t) {
  PlainBlock<E, BackwardBlock<E>> inner(t);
  Plain<E> d_out(t.d_out, t.value_dim, t.lanes), q_rows(t.q_rows, t.lanes, t.head_pitch),
      d_out_rows(t.d_out_rows, t.lanes, t.value_pitch);
  inner.block.d_out = d_out;
  inner.block.q_rows = q_rows;
  inner.block.d_out_rows = d_out_rows;
  inner.block.k_columns = inner.block.k;
  inner.block.v_tokens = inner.block.v;
  plain<E>().backward_block(inner.block);
  inner.spoil(t.p);
  inner.spoil(t.ds);
}

template <class E>
void weights_block(const Block<E>& t, const Stat<E>* row_max, const Stat<E>* row_inv, Acc<E> factor,
                   Acc<E>* sum, bool accumulate) {
  PlainBlock<E, Block<E>> inner(t);
  plain<E>().weights_block(inner.block, row_max, row_inv, factor, sum, accumulate);
  if (sum != t.s) inner.spoil(t.s);
}

template <class E>
Kernels<E> table() {
  Kernels<E> kernels = plain<E>();  // what knows no tile stays
  kernels.layout = kernels.key_layout = kernels.value_layout = kLayout;
  kernels.reads_rows = false;
  kernels.sums_are_tiles = false;
  kernels.tile_gemm = tile_gemm<E>;
  kernels.token_gemm = token_gemm<E>;
  kernels.pack = pack<E>;
  kernels.unpack = unpack<E>;
  kernels.gather_tokens = gather_tokens<E>;
  kernels.tile_to_rows = tile_to_rows<E>;
  kernels.rows_to_tile = rows_to_tile<E>;
  kernels.tile_of_sums = tile_of_sums<E>;
  kernels.feature_rows = feature_rows<E>;
  kernels.column_sums = column_sums<E>;
  kernels.delta = delta<E>;
  kernels.forward_block = forward_block<E>;
  kernels.forward_end = forward_end<E>;
  kernels.score_gradients = score_gradients<E>;
  kernels.backward_block = backward_block<E>;
  kernels.weights_block = weights_block<E>;
  return kernels;
}

}  // namespace
}  // namespace grouped
}  // namespace multihead

extern "C" const void* grouped_set() {
  using namespace multihead;
  static const Kernels<float> f32 = grouped::table<float>();
  static const Kernels<double> f64 = grouped::table<double>();
  static const KernelSet set = [] {
    KernelSet s = plain_kernels();
    s.name = "grouped";
    s.f32 = &f32;
    s.f64 = &f64;
    return s;
  }();
  return &set;
}

extern "C" const void* wide_set() { return &multihead::wide_kernels(); }
extern "C" const void* emulated_dot_set() { return &multihead::emulated_dot_kernels(); }
extern "C" const void* emulated_amx_set() { return &multihead::emulated_amx_kernels(); }
