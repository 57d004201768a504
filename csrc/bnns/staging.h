// Arrays in the engine's form: the caller's memory, whatever its type. Only what is not aligned is
// copied, and sums of several gradients in half precision are made as floats; both take their
// memory from an arena. Runs once to learn their size, and once for real.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "../engine/arena.h"
#include "tensor.h"

namespace multihead::bnns {

class Staging {
 public:
  Staging(Arena& arena, bool real) : arena_(arena), real_(real) {}

  // Something that is read.
  View input(const Tensor& t) { return read_in_place(t) ? t.view() : copy(t); }
  // (batch, tokens, features) of which those that a mask (batch, tokens) hides are not read.
  View visible(const Tensor& t, const Tensor& mask) {
    if (!mask || read_in_place(t)) return input(t);
    const Tensor to = t.contiguous(take(arena_, t));
    if (!real_ || t.elements() == 0) return to.view();
    std::memset(to.data, 0, size_t(to.elements() * to.item_bytes()));
    for (int64_t b = 0; b < t.size[0]; ++b)
      for (int64_t j = 0; j < t.size[1]; ++j)
        if (!static_cast<const uint8_t*>(mask.data)[b * mask.stride[0] + j * mask.stride[1]])
          copy_elements(t.row(b, j), to.row(b, j).data);
    return to.view();
  }

  // The engine sets it.
  View output(const Tensor& t) { return t && !t.aligned() ? floats(t) : t.view(); }
  // The engine sets it, or adds to it if it says so in `adds`; several gradients may have it.
  View target(const Tensor& t, bool shared, bool* adds) {
    const bool half = t && t.type != BNNSDataTypeFloat32;
    if (t && (!t.aligned() || (half && shared))) return floats(t);
    *adds = t.adds;
    return t.view();
  }
  // The engine adds to it, once `begin_sums` has been called.
  View sum(const Tensor& t) {
    if (t && !t.aligned()) {
      const View v = floats(t);
      if (real_) std::fill_n(v.as<float>(), t.elements(), 0.0f);
      return v;
    }
    if (t && !t.adds) to_clear_.push_back(t);
    return t.view();
  }
  void begin_sums() const {
    for (const Tensor& t : to_clear_) clear(t);
  }
  void finish() const {
    for (const auto& [from, to] : results_) narrow(from.as<float>(), to);
  }

 private:
  static bool read_in_place(const Tensor& t) { return !t || t.aligned(); }
  View copy(const Tensor& t) {
    const Tensor to = t.contiguous(take(arena_, t));
    if (real_) copy_elements(t, to.data);
    return to.view();
  }
  // Floats for results, which `finish` brings to where they belong.
  View floats(const Tensor& t) {
    for (const auto& [from, to] : results_)
      if (same_memory(t, to)) return from;
    Tensor like = t.contiguous(nullptr);
    like.type = BNNSDataTypeFloat32;
    like.data = take(arena_, like);
    results_.push_back({like.view(), t});
    return like.view();
  }

  Arena& arena_;
  bool real_;
  std::vector<std::pair<View, Tensor>> results_;
  std::vector<Tensor> to_clear_;
};

}  // namespace multihead::bnns
