// The only way tensors travel: memory, dtype, sizes and strides. Owns nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <stdexcept>

#include "../kernels/storage.h"

namespace multihead {

// f<E>() for the element type in which every set can compute arrays of a dtype.
template <class F>
decltype(auto) dispatch(DType type, F f) {
  switch (type) {
    case DType::Float16:
    case DType::BFloat16:
    case DType::Float32:
      return f.template operator()<float>();
    case DType::Float64:
      return f.template operator()<double>();
    case DType::Bool:
      break;
  }
  throw std::invalid_argument("dtype: expected a floating one, got bool");
}

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
  // An element, as the type that it is computed in.
  template <class E>
  E get(int64_t at) const {
    return element<E>(data, at, dtype);
  }
  template <class E>
  void set(int64_t at, E x) const {
    set_element(data, at, dtype, x);
  }
  void* address(int64_t at) const { return static_cast<char*>(data) + at * item_bytes(dtype); }
  // The element at some indices of the first axes, counted from `data`.
  int64_t at(int64_t a) const { return a * stride[0]; }
  int64_t at(int64_t a, int64_t b) const { return at(a) + b * stride[1]; }
  int64_t at(int64_t a, int64_t b, int64_t c) const { return at(a, b) + c * stride[2]; }
  int64_t at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return at(a, b, c) + d * stride[3];
  }
};

// Whether two views are the same elements in the same order.
bool same(const View& a, const View& b);

// What a product of sizes may be at most: memory has no more bytes, and sums of a few do not wrap.
constexpr int64_t kMostElements = int64_t(1) << 62;
// The product of sizes, or something above the most where it would be more.
template <class... Sizes>
constexpr int64_t size_product(int64_t first, Sizes... sizes) {
  const auto times = [&first](int64_t n) {
    first = n > 0 && first > kMostElements / n ? INT64_MAX : first * n;
  };
  (times(int64_t(sizes)), ...);
  return first;
}

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t divide_up(int64_t n, int64_t step) { return (n + step - 1) / step; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace multihead
