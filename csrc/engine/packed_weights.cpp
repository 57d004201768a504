#include "packed_weights.h"

namespace multihead {
namespace {

// A copy costs what a hundred tokens or so cost; in reading order it saves a twentieth of every
// product whose rows lie across the reading order, or whose rows all fall into the same few sets of
// a cache.
constexpr int64_t kMany = 1024, kSome = 512;

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
PackedWeights<E> PackedWeights<E>::by_head(const HeadWeights& weights, const Kernels<E>& kernels) {
  const View &w = weights.weight, &b = weights.bias;
  PackedWeights p;
  p.left_ = kernels.left;
  p.weight_ = w;
  p.group_ = w.size[1];
  p.m_ = w.size[0] * w.size[1];
  p.piece_ = w.size[2];
  p.k_ = p.padded_piece_ = kernels.layout.rows(w.size[2]);
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
                                              const Kernels<E>& kernels) {
  const View& w = weights.weight;
  PackedWeights p;
  p.left_ = kernels.left;
  p.weight_ = w;
  p.group_ = kFeatureGroup;
  p.m_ = w.size[2];
  p.piece_ = w.size[1];
  p.padded_piece_ = kernels.layout.rows(w.size[1]);
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
  const bool pays = tokens >= (kRounds<E> ? kSome : row_stride_ == 1 ? kMany : 2 * kMany);
  const bool stored = weight_.dtype != kTypeOf<E>;
  const bool one_row = groups() == 1 || group_stride_ == group_ * row_stride_;
  packed_ = pays || !in_place_ || !lies_right() ||
            (stored && (kRounds<E> || (k_stride_ != 1 && !one_row)));
  if (stored && !packed_ && k_stride_ != 1) wide_ = arena.take<E>(size_product(m_, k_));
  const int64_t rows = kRounds<E> ? left_.filled(group_) : panel_rows(group_);
  // Where an address decides, there is room for both: sizes are asked before addresses are known.
  if (packed_ || kRounds<E>) packed_rows_ = arena.take<E>(size_product(groups(), rows, k_));
  if (bias_ && bias_.dtype != kTypeOf<Acc<E>>) wide_bias_ = arena.take<Acc<E>>(m_);
}

// Whether products can read the weights where they lie, as far as strides and addresses go; and
// whether they then take the rows as they take packed ones, which decides the order of sums.
template <class E>
bool PackedWeights<E>::lies_right() const {
  if (!kRounds<E>) return row_stride_ == 1 || k_stride_ == 1;
  const auto aligned = [this](int64_t bytes) { return bytes % left_.aligned == 0; };
  const int64_t item = item_bytes(weight_.dtype);
  return k_stride_ == 1 && group_ % left_.rows == 0 && m_ % left_.rows == 0 &&
         aligned(int64_t(reinterpret_cast<uintptr_t>(weight_.data))) &&
         aligned(row_stride_ * item) && aligned(group_stride_ * item);
}

template <class E>
void PackedWeights<E>::add_packing(std::vector<Phase>& phases, const Kernels<E>& kernels) const {
  if (wide_)
    phases.push_back({divide_up(k_, kRows),
                      [this, &kernels](int64_t task, int) { widen_columns(task, kernels); }});
  if (packed_)
    phases.push_back({groups() * divide_up(k_, kDepth),
                      [this, &kernels](int64_t task, int) { pack_block(task, kernels); }});
  if (wide_bias_) phases.push_back({1, [this](int64_t, int) { widen_bias(); }});
}

// Up to kRows columns, all that has one k, as they lie.
template <class E>
void PackedWeights<E>::widen_columns(int64_t task, const Kernels<E>& kernels) const {
  const int64_t first = task * kRows, n = smaller(k_ - first, kRows);
  void* column[kRows];
  for (int64_t i = 0; i < n; ++i) column[i] = weight_.address((first + i) * k_stride_);
  kernels.gather_rows(wide_ + first * m_, m_, {column, 1, weight_.dtype}, m_, n);
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

// A block of k for the rows of a group, as the set wants it: 0 in rows after the last.
template <class E>
void PackedWeights<E>::pack_rounded(int64_t task, const Kernels<E>& kernels) const {
  const int64_t blocks = divide_up(k_, kDepth);
  const int64_t group = task / blocks, k0 = task % blocks * kDepth;
  const int64_t n = rows(group), filled = left_.filled(group_);
  const int64_t depth = left_.depth ? left_.depth : kDepth;
  E* const to = packed_rows_ + group * filled * k_;
  for (int64_t r = 0; r < left_.filled(n); r += kRows)
    for (int64_t k = k0; k < smaller(k0 + kDepth, k_); k += depth)
      pack_square(kernels, group,
                  {r, smaller(kRows, left_.filled(n) - r), k, smaller(depth, k_ - k)},
                  to + left_.at(r, k, k_));
}

// Up to kRows rows and kDepth of k of a group.
template <class E>
void PackedWeights<E>::pack_square(const Kernels<E>& kernels, int64_t group, const Square& at,
                                   E* to) const {
  const int64_t pitch = left_.depth ? left_.depth : k_;
  const int64_t given = smaller(at.rows, rows(group) - at.row);
  const auto address = [&](int64_t r, int64_t offset) {
    return weight_.address(group * group_stride_ + (at.row + r) * row_stride_ + offset);
  };
  void* row[kRows];
  if (row_stride_ == 1 && k_stride_ != 1) {
    E columns[kDepth * kRows];
    for (int64_t k = 0; k < at.depth; ++k) {
      const int64_t offset = offset_of(at.k + k);
      row[0] = address(0, larger(offset, 0));
      kernels.gather_rows(columns + k * kRows, kRows, {row, 1, weight_.dtype},
                          offset < 0 ? 0 : given, 1);
    }
    kernels.transpose(to, pitch, columns, kRows, at.depth, at.rows);
    return;
  }
  for (int64_t k = 0; k < at.depth;) {  // along k, piece by piece
    const int64_t inside = (at.k + k) % padded_piece_;
    const int64_t some = smaller(padded_piece_ - inside, at.depth - k);
    const int64_t real = larger(0, smaller(piece_ - inside, some));
    for (int64_t r = 0; r < at.rows; ++r)
      row[r] = address(smaller(r, given - 1), real ? offset_of(at.k + k) : 0);
    const auto gather = [&](int64_t first, int64_t columns, int64_t count) {
      kernels.gather_rows(to + first * pitch + k, some, {row + first, k_stride_, weight_.dtype},
                          columns, count);
    };
    if (some == pitch) {  // rows that are side by side
      gather(0, real, given);
      if (given < at.rows) gather(given, 0, at.rows - given);
    } else {
      for (int64_t r = 0; r < at.rows; ++r) gather(r, r < given ? real : 0, 1);
    }
    k += some;
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
  if (packed_ && kRounds<E>) {  // all of k
    const int64_t filled = left_.filled(group_);
    g.a = {.data = packed_rows_ + group * filled * k_, .row = k_, .k = 1, .packed = true};
    g.room = left_.filled(n);
  } else if (packed_) {
    g.a = {.data = packed_rows_ + group * panel_rows(group_) * k_ + depth.first * panel_rows(n),
           .row = panel_rows(n),
           .k = 0,
           .packed = true};
  } else if (wide_) {
    g.a = {.data = wide_ + first_row(group) + depth.first * m_, .row = 1, .k = m_};
  } else {
    const int64_t at = group * group_stride_ + depth.first * k_stride_;
    g.a = {.data = nullptr, .row = row_stride_, .k = k_stride_};
    if (weight_.dtype == kTypeOf<E>) {
      g.a.data = weight_.as<E>() + at;
    } else {
      g.a.stored = weight_.address(at);
      g.a.type = weight_.dtype;
    }
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

template <class E>
auto PackedWeights<E>::rows_in_place(int64_t group) const -> Rows {
  const bool bias_lies = !bias_ || wide_bias_ || bias_stride_ == 1;
  if (packed_ || wide_ || !in_place_ || k_stride_ != 1 || !bias_lies) return {};
  const Acc<E>* bias = wide_bias_ ? wide_bias_ + group * group_ : nullptr;
  if (bias_ && !wide_bias_) bias = bias_.as<Acc<E>>() + group * bias_group_stride_;
  return {{weight_.address(group * group_stride_), row_stride_, weight_.dtype}, bias, true};
}

template class PackedWeights<BFloat16>;
template class PackedWeights<float>;
template class PackedWeights<double>;

}  // namespace multihead
