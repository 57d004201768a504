// Arrays in the engine's form: the caller's memory where that will do, else float copies taken
// from an arena. Runs once to learn their size, and once for real.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../engine/arena.h"
#include "tensor.h"

namespace multihead::bnns {

inline View contiguous(float* data, const Tensor& like) {
  View v;
  v.data = data;
  v.rank = like.rank;
  int64_t stride = 1;
  for (int i = like.rank - 1; i >= 0; --i) {
    v.size[i] = like.size[i];
    v.stride[i] = stride;
    stride *= like.size[i];
  }
  return v;
}

class Staging {
 public:
  Staging(Arena& arena, bool real) : arena_(arena), real_(real) {}

  // A parameter: float, so that the size of a call does not depend on where it lies.
  View in(const Tensor& t) {
    if (!t) return {};
    if (t.direct()) return t.view();
    if (!t.data) return contiguous(nullptr, t);
    return copy(t);
  }
  // Something that is read: as it is stored, if it can be.
  View input(const Tensor& t) {
    if (!t) return {};
    return t.readable() || !t.data ? t.view() : copy(t);
  }
  View copy(const Tensor& t) {
    float* to = arena_.take<float>(t.elements());
    if (real_) widen(t, to);
    return contiguous(to, t);
  }
  // (batch, tokens, features) of which those that a mask (batch, tokens) hides are not read.
  View in_visible(const Tensor& t, const Tensor& mask) {
    if (!mask || t.readable() || !t.data) return input(t);
    float* to = arena_.take<float>(t.elements());
    const View v = contiguous(to, t);
    if (!real_) return v;
    std::fill_n(to, t.elements(), 0.0f);
    Tensor row = t;
    row.rank = 1;
    row.size[0] = t.size[2], row.stride[0] = t.stride[2];
    for (int64_t b = 0; b < t.size[0]; ++b)
      for (int64_t j = 0; j < t.size[1]; ++j) {
        if (static_cast<const uint8_t*>(mask.data)[b * mask.stride[0] + j * mask.stride[1]])
          continue;
        row.data =
            static_cast<char*>(t.data) + (b * t.stride[0] + j * t.stride[1]) * t.item_bytes();
        widen(row, to + (b * t.size[1] + j) * t.size[2]);
      }
    return v;
  }
  // The engine sets it, once and with nothing added.
  View output(const Tensor& t) {
    bool adds = false;
    return t && !t.adds && t.readable() ? t.view() : result(t, &adds);
  }
  // The engine sets it; `finish` brings it back. `adds` says that the engine is to add.
  View result(const Tensor& t, bool* adds) {
    *adds = false;
    if (!t) return {};
    if (t.direct()) {
      *adds = t.adds;
      return t.view();
    }
    for (const auto& [from, to] : results_)
      if (same_memory(t, to)) return contiguous(from, t);
    float* from = arena_.take<float>(t.elements());
    results_.push_back({from, t});
    return contiguous(from, t);
  }
  // The engine adds to it, once `begin_sums` has been called.
  View sum(const Tensor& t) {
    bool adds = false;
    const View v = result(t, &adds);
    if (!t || adds) return v;
    if (t.direct()) {
      to_clear_.push_back(t);
    } else {
      Tensor copy = t;
      copy.data = v.data;
      copy.type = BNNSDataTypeFloat32;
      std::copy(v.stride, v.stride + t.rank, copy.stride);
      to_clear_.push_back(copy);
    }
    return v;
  }
  void begin_sums() const {
    for (const Tensor& t : to_clear_) clear(t);
  }
  void finish() const {
    for (const auto& [from, to] : results_) narrow(from, to);
  }

 private:
  Arena& arena_;
  bool real_;
  std::vector<std::pair<float*, Tensor>> results_;
  std::vector<Tensor> to_clear_;
};

}  // namespace multihead::bnns
