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

  View in(const Tensor& t) {
    if (!t) return {};
    if (t.direct() || !t.data) return t.view();
    float* to = arena_.take<float>(t.elements());
    if (real_) widen(t, to);
    return contiguous(to, t);
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
  // The engine adds to it.
  View sum(const Tensor& t) {
    bool adds = false;
    const View v = result(t, &adds);
    if (!real_ || !t) return v;
    if (t.direct()) {
      if (!adds) clear(t);
    } else {
      std::fill_n(v.as<float>(), t.elements(), 0.0f);
    }
    return v;
  }
  void finish() const {
    for (const auto& [from, to] : results_) narrow(from, to);
  }

 private:
  Arena& arena_;
  bool real_;
  std::vector<std::pair<float*, Tensor>> results_;
};

}  // namespace multihead::bnns
