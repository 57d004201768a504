#include "packed_weights.h"

namespace multihead {
namespace {

// A copy costs what a hundred tokens or so cost; in reading order it saves a twentieth of every
// product whose rows lie across the reading order, or whose rows all fall into the same few sets of
// a cache.
constexpr int64_t kMany = 1024;
constexpr int64_t kFeatureGroup = 16 * kPanelRows;

template <class E>
void pack_panel_row(E* to, const E* from, int64_t stride, int64_t rows) {
  if (rows >= kPanelRows) {
    for (int64_t i = 0; i < kPanelRows; ++i) to[i] = from[i * stride];
  } else {
    for (int64_t i = 0; i < kPanelRows; ++i) to[i] = i < rows ? from[i * stride] : E(0);
  }
}

}  // namespace

template <class E>
PackedWeights<E> PackedWeights<E>::by_head(const HeadWeights& weights, TileLayout layout) {
  const View &w = weights.weight, &b = weights.bias;
  PackedWeights p;
  p.data_ = w.as<E>();
  p.group_ = w.size[1];
  p.m_ = w.size[0] * w.size[1];
  p.piece_ = w.size[2];
  p.k_ = p.padded_piece_ = layout.rows(w.size[2]);
  p.in_place_ = p.k_ == p.piece_;
  p.group_stride_ = w.stride[0];
  p.row_stride_ = w.stride[1];
  p.k_stride_ = w.stride[2];
  if (b) {
    p.bias_ = b.as<E>();
    p.bias_group_stride_ = b.stride[0];
    p.bias_stride_ = b.stride[1];
  }
  return p;
}

template <class E>
PackedWeights<E> PackedWeights<E>::by_feature(const HeadWeights& weights, const View& bias,
                                              TileLayout layout) {
  const View& w = weights.weight;
  PackedWeights p;
  p.data_ = w.as<E>();
  p.group_ = kFeatureGroup;
  p.m_ = w.size[2];
  p.piece_ = w.size[1];
  p.padded_piece_ = layout.rows(w.size[1]);
  p.k_ = w.size[0] * p.padded_piece_;
  p.row_stride_ = w.stride[2];
  p.group_stride_ = kFeatureGroup * w.stride[2];
  p.k_stride_ = w.stride[1];
  p.piece_stride_ = w.stride[0];
  p.in_place_ =
      p.padded_piece_ == p.piece_ && (w.size[0] == 1 || w.stride[0] == w.size[1] * w.stride[1]);
  if (bias) {
    p.bias_ = bias.as<E>();
    p.bias_stride_ = bias.stride[0];
    p.bias_group_stride_ = kFeatureGroup * bias.stride[0];
  }
  return p;
}

template <class E>
void PackedWeights<E>::layout(Arena& arena, int64_t tokens) {
  const bool readable = in_place_ && (row_stride_ == 1 || k_stride_ == 1);
  const bool pays = tokens >= (row_stride_ == 1 ? kMany : 2 * kMany);
  packed_ = !readable || pays;
  if (packed_) panels_ = arena.take<E>(groups() * panel_rows(group_) * k_);
}

template <class E>
void PackedWeights<E>::add_packing(std::vector<Phase>& phases) const {
  if (packed_)
    phases.push_back(
        {groups() * divide_up(k_, kDepth), [this](int64_t task, int) { pack_block(task); }});
}

template <class E>
void PackedWeights<E>::pack_block(int64_t task) const {
  const int64_t blocks = divide_up(k_, kDepth);
  const int64_t group = task / blocks, k0 = task % blocks * kDepth;
  const int64_t depth = smaller(k_ - k0, kDepth), n = rows(group);
  const E* from = data_ + group * group_stride_;
  E* const to = panels_ + group * panel_rows(group_) * k_ + k0 * panel_rows(n);
  const auto pack = [&](int64_t r, int64_t k) {
    const int64_t at = offset_of(k0 + k);
    E* const row = to + r * depth + k * kPanelRows;
    if (at < 0)
      pack_panel_row(row, from, 0, 0);
    else if (row_stride_ == 1)
      pack_panel_row(row, from + r + at, 1, n - r);
    else
      pack_panel_row(row, from + r * row_stride_ + at, row_stride_, n - r);
  };
  // Along what lies together: down the columns of k or across them.
  if (row_stride_ == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t r = 0; r < n; r += kPanelRows) pack(r, k);
  } else {
    for (int64_t r = 0; r < n; r += kPanelRows)
      for (int64_t k = 0; k < depth; ++k) pack(r, k);
  }
}

template <class E>
TileGemm<E> PackedWeights<E>::product(int64_t group, Depth depth, const E* b, int64_t lanes, E* c,
                                      bool adds) const {
  const int64_t n = rows(group);
  TileGemm<E> g{.m = n, .k = depth.count, .lanes = lanes, .a = {}, .b = b, .c = c, .init = {}};
  if (packed_) {
    g.a = {.data = panels_ + group * panel_rows(group_) * k_ + depth.first * panel_rows(n),
           .row = panel_rows(n),
           .k = 0,
           .packed = true};
  } else {
    g.a = {.data = data_ + group * group_stride_ + depth.first * k_stride_,
           .row = row_stride_,
           .k = k_stride_};
  }
  if (adds || depth.first > 0) {
    g.init = Init::Load;
  } else if (bias_) {
    g.init = Init::Bias;
    g.bias = bias_ + group * bias_group_stride_;
    g.bias_stride = bias_stride_;
  }
  return g;
}

template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace multihead
