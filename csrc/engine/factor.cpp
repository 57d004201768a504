#include "factor.h"

namespace multihead {

// A copy costs what a hundred tokens or so cost; in reading order it saves a twentieth of every
// product whose rows lie across the reading order.
constexpr int64_t kMany = 1024;
constexpr int64_t kFeatureGroup = 16 * kPanelRows;

template <class T>
Factor<T> Factor<T>::heads(const HeadWeights& weights) {
  const View &w = weights.weight, &b = weights.bias;
  Factor f;
  f.data_ = w.as<T>();
  f.group_ = w.size[1];
  f.m_ = w.size[0] * w.size[1];
  f.k_ = f.piece_ = w.size[2];
  f.group_stride_ = w.stride[0];
  f.row_stride_ = w.stride[1];
  f.k_stride_ = w.stride[2];
  if (b) {
    f.bias_ = b.as<T>();
    f.bias_group_stride_ = b.stride[0];
    f.bias_stride_ = b.stride[1];
  }
  return f;
}

template <class T>
Factor<T> Factor<T>::features(const HeadWeights& weights, const View& bias) {
  const View& w = weights.weight;
  Factor f;
  f.data_ = w.as<T>();
  f.group_ = kFeatureGroup;
  f.m_ = w.size[2];
  f.k_ = w.size[0] * w.size[1];
  f.row_stride_ = w.stride[2];
  f.group_stride_ = kFeatureGroup * w.stride[2];
  f.k_stride_ = w.stride[1];
  const bool heads_follow = w.size[0] == 1 || w.stride[0] == w.size[1] * w.stride[1];
  f.piece_ = heads_follow ? larger(f.k_, 1) : w.size[1];
  f.piece_stride_ = w.stride[0];
  if (bias) {
    f.bias_ = bias.as<T>();
    f.bias_stride_ = bias.stride[0];
    f.bias_group_stride_ = kFeatureGroup * bias.stride[0];
  }
  return f;
}

template <class T>
void Factor<T>::layout(Arena& arena, int64_t tokens) {
  const bool needed = piece_ < k_ || (row_stride_ != 1 && k_stride_ != 1);
  const bool pays = row_stride_ == 1 ? tokens >= kMany : tokens >= 2 * kMany;
  copied_ = needed || pays;
  if (copied_) panels_ = arena.take<T>(groups() * panel_rows(group_) * k_);
}

template <class T>
static void copy_panel_row(T* to, const T* from, int64_t stride, int64_t rows) {
  if (rows >= kPanelRows) {
    for (int64_t i = 0; i < kPanelRows; ++i) to[i] = from[i * stride];
  } else {
    for (int64_t i = 0; i < kPanelRows; ++i) to[i] = i < rows ? from[i * stride] : T(0);
  }
}

template <class T>
void Factor<T>::add_copy(std::vector<Phase>& phases) const {
  if (!copied_) return;
  const int64_t blocks = divide_up(k_, kDepth);
  auto run = [f = *this, blocks](int64_t task, int) {
    const int64_t group = task / blocks, k0 = task % blocks * kDepth;
    const int64_t depth = smaller(f.k_ - k0, kDepth), n = f.rows(group);
    const T* from = f.data_ + group * f.group_stride_;
    T* const to = f.panels_ + group * panel_rows(f.group_) * f.k_ + k0 * panel_rows(n);
    // Along what lies together: down the columns of k or across them.
    if (f.row_stride_ == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        const T* at = from + f.offset_of(k0 + k);
        for (int64_t r = 0; r < n; r += kPanelRows)
          copy_panel_row(to + r * depth + k * kPanelRows, at + r, 1, n - r);
      }
    } else {
      for (int64_t r = 0; r < n; r += kPanelRows)
        for (int64_t k = 0; k < depth; ++k)
          copy_panel_row(to + r * depth + k * kPanelRows,
                         from + r * f.row_stride_ + f.offset_of(k0 + k), f.row_stride_, n - r);
    }
  };
  phases.push_back({groups() * blocks, std::move(run)});
}

template <class T>
Gemm<T> Factor<T>::product(int64_t group, int64_t k0, int64_t depth, const T* b, int64_t lanes,
                           T* c, bool adds, Ahead* ahead) const {
  const int64_t n = rows(group);
  Gemm<T> g{n, lanes, depth, nullptr, row_stride_, k_stride_, b + k0 * lanes, lanes, c, lanes};
  if (copied_) {
    g.panels = true;
    g.a = panels_ + group * panel_rows(group_) * k_ + k0 * panel_rows(n);
    g.a_row = panel_rows(n);
  } else {
    g.a = data_ + group * group_stride_ + k0 * k_stride_;
  }
  if (adds || k0 > 0) {
    g.init = Init::Load;
  } else if (bias_) {
    g.init = Init::Bias;
    g.start = bias_ + group * bias_group_stride_;
    g.start_stride = bias_stride_;
  }
  g.ahead = ahead;
  return g;
}

template class Factor<float>;
template class Factor<double>;

}  // namespace multihead
