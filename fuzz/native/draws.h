// Bytes as decisions. The first eight seed a stream of numbers; each later one decides something,
// and when they have run out the stream decides: every input is a whole call, and the same one each
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fuzz {

class Draws {
 public:
  Draws(const uint8_t* data, size_t size) : at_(data), end_(data + size) {
    const size_t seed = size < 8 ? size : 8;
    std::memcpy(&state_, data, seed);
    at_ += seed;
  }

  uint64_t word() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint32_t byte() { return at_ < end_ ? *at_++ : uint32_t(word() >> 56); }
  int64_t below(int64_t n) {  // from 0 to n - 1
    uint64_t x = byte();
    for (int64_t most = 256; most < n && most < (int64_t(1) << 48); most *= 256)
      x = x << 8 | byte();
    return int64_t(x % uint64_t(n));
  }
  int64_t from(int64_t first, int64_t last) { return first + below(last - first + 1); }
  bool flip(double p = 0.5) { return byte() < 256 * p; }
  template <class T, size_t N>
  T pick(const T (&of)[N]) {
    return of[below(int64_t(N))];
  }
  template <class T>
  const T& pick_of(const std::vector<T>& all) {
    return all[size_t(below(int64_t(all.size())))];
  }
  // Nearly normal: values of arrays, from the stream.
  double number() {
    const uint64_t z = word();
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += double((z >> (16 * i)) & 0xFFFF);
    return (sum - 131070.0) / 32768.0;
  }

 private:
  const uint8_t *at_, *end_;
  uint64_t state_ = 0;
};

}  // namespace fuzz
