// The only way tensors travel: memory, dtype, sizes and strides. Owns nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace multihead {

enum class DType : int { Bool, Float32, Float64 };

constexpr int kMaxRank = 4;

struct View {
  void* data = nullptr;
  DType dtype = DType::Float32;
  int rank = 0;  // 0: absent
  int64_t size[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};  // in elements

  explicit operator bool() const { return rank > 0; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t divide_up(int64_t n, int64_t step) { return (n + step - 1) / step; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace multihead
