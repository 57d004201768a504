// Random arrays that are the same everywhere, and a digest of their bits.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/engine/view.h"

namespace multihead::digest {

// splitmix64: integers only.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool percent(int64_t p) { return below(100) < p; }
  // In [-1, 1), with as many bits as fill the mantissa.
  template <class T>
  T number() {
    constexpr int bits = std::numeric_limits<T>::digits;
    return T(int64_t(next() >> (64 - bits))) / T(int64_t(1) << (bits - 1)) - T(1);
  }

 private:
  uint64_t state_;
};

using Sizes = std::vector<int64_t>;

// Memory, and how it is looked at; all of it counts in a digest, gaps between elements too.
template <class T>
struct Array {
  std::vector<T> memory;
  View view;

  Array() = default;
  Array(Array&&) = default;
  Array& operator=(Array&&) = default;
  Array(const Array& other) : memory(other.memory), view(other.view) { view.data = memory.data(); }
};

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 1 ? DType::Bool : sizeof(T) == 4 ? DType::Float32 : DType::Float64;
}

// Strides are drawn: contiguous, every other element, rows with a gap, the last axes swapped.
template <class T>
Array<T> shaped(Numbers& numbers, const Sizes& sizes, bool strided = true) {
  Array<T> a;
  View& v = a.view;
  v.dtype = dtype_of<T>();
  v.rank = int(sizes.size());
  const int64_t way = strided ? numbers.below(6) : 5;
  int64_t reach = way == 0 ? 2 : 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    const bool swaps = way == 2 && v.rank > 1 && i >= v.rank - 2;
    const int axis = swaps ? 2 * v.rank - 3 - i : i;
    v.size[axis] = sizes[size_t(axis)];
    v.stride[axis] = reach;
    reach = reach * v.size[axis] + (way == 1 && i == v.rank - 1 ? 3 : 0);
  }
  a.memory.resize(size_t(larger(reach, 1)));
  v.data = a.memory.data();
  return a;
}

template <class T>
Array<T> random(Numbers& numbers, const Sizes& sizes, T scale = 1, bool strided = true) {
  Array<T> a = shaped<T>(numbers, sizes, strided);
  for (T& x : a.memory) x = numbers.number<T>() * scale;
  return a;
}

// A mask that hides some: bytes, or numbers with -inf among them.
template <class T>
Array<T> mask(Numbers& numbers, const Sizes& sizes) {
  Array<T> a = shaped<T>(numbers, sizes);
  constexpr int64_t kPercent[] = {0, 10, 30, 90};
  const int64_t hidden = kPercent[numbers.below(4)];
  for (T& x : a.memory) {
    const bool hides = numbers.percent(hidden);
    if constexpr (sizeof(T) == 1)
      x = hides;
    else
      x = hides ? -std::numeric_limits<T>::infinity() : 2 * numbers.number<T>();
  }
  return a;
}

class Digest {
 public:
  template <class T>
  void add(const Array<T>& a) {
    const auto* p = reinterpret_cast<const unsigned char*>(a.memory.data());
    for (size_t i = 0; i < a.memory.size() * sizeof(T); ++i)
      hash_ = (hash_ ^ p[i]) * 1099511628211u;
  }
  template <class T>
  void add_all(const std::vector<const Array<T>*>& arrays) {
    for (const Array<T>* a : arrays) add(*a);
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 14695981039346656037u;
};

}  // namespace multihead::digest
