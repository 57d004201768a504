#include "packed_weights.h"

namespace multihead {
namespace {

// A copy costs what a hundred tokens or so cost; in reading order it saves a twentieth of every
// product whose rows lie across the reading order, or whose rows all fall into the same few sets of
// a cache.
constexpr int64_t kMany = 1024;

template <class E, class S>
void pack_panel_row(E* to, const S* from, int64_t stride, int64_t rows) {
  if (rows >= kPanelRows) {
    for (int64_t i = 0; i < kPanelRows; ++i) narrow(to[i], widen(from[i * stride]));
  } else {
    for (int64_t i = 0; i < kPanelRows; ++i)
      to[i] = i < rows ? rounded<E>(widen(from[i * stride])) : E{};
  }
}

}  // namespace

template <class E>
PackedWeights<E> PackedWeights<E>::by_head(const HeadWeights& weights, TileLayout layout) {
  const View &w = weights.weight, &b = weights.bias;
  PackedWeights p;
  p.weight_ = w;
  p.group_ = w.size[1];
  p.m_ = w.size[0] * w.size[1];
  p.piece_ = w.size[2];
  p.k_ = p.padded_piece_ = layout.rows(w.size[2]);
  p.in_place_ = p.k_ == p.piece_;
  p.group_stride_ = w.stride[0];
  p.row_stride_ = w.stride[1];
  p.k_stride_ = w.stride[2];
  if (b) {
    p.bias_ = b;
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
  p.weight_ = w;
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
    p.bias_ = bias;
    p.bias_stride_ = bias.stride[0];
    p.bias_group_stride_ = kFeatureGroup * bias.stride[0];
  }
  return p;
}

template <class E>
void PackedWeights<E>::layout(Arena& arena, int64_t tokens) {
  const bool lies_right = kRounds<E> ? k_stride_ == 1 : row_stride_ == 1 || k_stride_ == 1;
  const bool readable = in_place_ && weight_.dtype == kTypeOf<E> && lies_right;
  const bool pays = !kRounds<E> && tokens >= (row_stride_ == 1 ? kMany : 2 * kMany);
  packed_ = !readable || pays;
  if (packed_) packed_rows_ = arena.take<E>(groups() * panel_rows(group_) * k_);
  if (bias_ && bias_.dtype != kTypeOf<Acc<E>>) wide_bias_ = arena.take<Acc<E>>(m_);
}

template <class E>
void PackedWeights<E>::add_packing(std::vector<Phase>& phases, const Kernels<E>& kernels) const {
  if (packed_)
    phases.push_back({groups() * divide_up(k_, kDepth),
                      [this, &kernels](int64_t task, int) { pack_block(task, kernels); }});
  if (wide_bias_) phases.push_back({1, [this](int64_t, int) { widen_bias(); }});
}

template <class E>
void PackedWeights<E>::widen_bias() const {
  for (int64_t i = 0; i < m_; ++i)
    wide_bias_[i] = bias_.get<Acc<E>>(i / group_ * bias_group_stride_ + i % group_ * bias_stride_);
}

template <class E>
void PackedWeights<E>::pack_block(int64_t task, const Kernels<E>& kernels) const {
  if constexpr (kRounds<E>) {
    pack_rounded(task, kernels);
  } else {
    const int64_t blocks = divide_up(k_, kDepth);
    const int64_t group = task / blocks, k0 = task % blocks * kDepth;
    const int64_t depth = smaller(k_ - k0, kDepth), n = rows(group);
    E* const to = packed_rows_ + group * panel_rows(group_) * k_ + k0 * panel_rows(n);
    if (in_place_ && weight_.dtype != kTypeOf<E>) return pack_stored(kernels, group, to, k0, depth);
    Stored<E>::as(weight_.dtype, [&]<class S>() {
      pack_rows(weight_.as<const S>() + group * group_stride_, to, n, k0, depth);
    });
  }
}

// Rows of k, a block of it for the rows of a group.
template <class E>
void PackedWeights<E>::pack_rounded(int64_t task, const Kernels<E>& kernels) const {
  const int64_t blocks = divide_up(k_, kDepth);
  const int64_t group = task / blocks, k0 = task % blocks * kDepth;
  const int64_t depth = smaller(k_ - k0, kDepth), n = rows(group);
  E* const to = packed_rows_ + first_row(group) * k_ + k0;
  const auto address = [&](int64_t r, int64_t at) {
    return weight_.address(group * group_stride_ + r * row_stride_ + at);
  };
  if (row_stride_ != 1 || k_stride_ == 1) {  // along k, piece by piece
    for (int64_t k = 0; k < depth;) {
      const int64_t inside = (k0 + k) % padded_piece_;
      const int64_t some = smaller(padded_piece_ - inside, depth - k);
      const int64_t given = larger(0, smaller(piece_ - inside, some));
      for (int64_t r = 0; r < n; ++r) {
        void* const row = address(r, given ? offset_of(k0 + k) : 0);
        kernels.gather_rows(to + r * k_ + k, some, {&row, k_stride_, weight_.dtype}, given, 1);
      }
      k += some;
    }
    return;
  }
  constexpr int64_t kSome = 64;  // rows
  E columns[kDepth * kSome];
  for (int64_t first = 0; first < n; first += kSome) {
    const int64_t m = smaller(n - first, kSome);
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t at = offset_of(k0 + k);
      void* const row = address(first, larger(at, 0));
      kernels.gather_rows(columns + k * kSome, kSome, {&row, 1, weight_.dtype}, at < 0 ? 0 : m, 1);
    }
    kernels.transpose(to + first * k_, k_, columns, kSome, depth, m);
  }
}

template <class E>
template <class S>
void PackedWeights<E>::pack_rows(const S* from, E* to, int64_t n, int64_t k0, int64_t depth) const {
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

// Of another type than is computed in: what lies together is converted by the vector first.
template <class E>
void PackedWeights<E>::pack_stored(const Kernels<E>& kernels, int64_t group, E* to, int64_t k0,
                                   int64_t depth) const {
  constexpr int64_t kSome = kDepth / kPanelRows * kPanelRows;  // rows
  const int64_t n = rows(group);
  const auto address = [&](int64_t r, int64_t k) {
    return weight_.address(group * group_stride_ + r * row_stride_ + (k0 + k) * k_stride_);
  };
  E wide[kPanelRows * kDepth];
  if (row_stride_ == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t first = 0; first < n; first += kSome) {
        void* const row = address(first, k);
        const int64_t m = smaller(n - first, kSome);
        kernels.gather_rows(wide, m, {&row, 1, weight_.dtype}, m, 1);
        for (int64_t r = 0; r < m; r += kPanelRows)
          pack_panel_row(to + (first + r) * depth + k * kPanelRows, wide + r, 1, m - r);
      }
    return;
  }
  for (int64_t first = 0; first < n; first += kPanelRows) {
    const int64_t m = smaller(n - first, kPanelRows);
    void* row[kPanelRows];
    for (int64_t r = 0; r < m; ++r) row[r] = address(first + r, 0);
    kernels.gather_rows(wide, depth, {row, k_stride_, weight_.dtype}, depth, m);
    for (int64_t k = 0; k < depth; ++k)
      pack_panel_row(to + first * depth + k * kPanelRows, wide + k, depth, m);
  }
}

template <class E>
TileGemm<E> PackedWeights<E>::product(int64_t group, Depth depth, const E* b, int64_t lanes,
                                      Acc<E>* c, bool adds) const {
  const int64_t n = rows(group);
  TileGemm<E> g{.m = n, .k = depth.count, .lanes = lanes, .a = {}, .b = b, .c = c, .init = {}};
  if (packed_ && kRounds<E>) {
    g.a = {.data = packed_rows_ + first_row(group) * k_ + depth.first, .row = k_, .k = 1};
  } else if (packed_) {
    g.a = {.data = packed_rows_ + group * panel_rows(group_) * k_ + depth.first * panel_rows(n),
           .row = panel_rows(n),
           .k = 0,
           .packed = true};
  } else {
    g.a = {.data = weight_.as<E>() + group * group_stride_ + depth.first * k_stride_,
           .row = row_stride_,
           .k = k_stride_};
  }
  if (adds || depth.first > 0) {
    g.init = Init::Load;
  } else if (wide_bias_) {
    g.init = Init::Bias;
    g.bias = wide_bias_ + group * group_;
  } else if (bias_) {
    g.init = Init::Bias;
    g.bias = bias_.as<Acc<E>>() + group * bias_group_stride_;
    g.bias_stride = bias_stride_;
  }
  return g;
}

template class PackedWeights<BFloat16>;
template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace multihead
