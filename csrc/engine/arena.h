// Aligned memory taken in one piece and handed out front to back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "../platform/guards.h"

namespace multihead {

constexpr size_t kAlign = 64;

// Memory of the caller's: both functions, or neither. allocate returns 0 if it did.
struct Allocator {
  int (*allocate)(void** data, size_t align, size_t bytes) = nullptr;
  void (*release)(void* data) = nullptr;
};

// Owns a block; throws std::bad_alloc.
class Block64 {
 public:
  Block64() = default;
  explicit Block64(size_t bytes, const Allocator& from = {});
  ~Block64();
  Block64(Block64&& other) noexcept : from_(other.from_), data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  Block64(const Block64&) = delete;
  Block64& operator=(const Block64&) = delete;
  Block64& operator=(Block64&& other) noexcept {
    std::swap(from_, other.from_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Allocator from_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Hands out parts of a block. Without a block it counts only: a layout runs once to learn its
// size and once to take its memory. Between parts of a block of our own a sanitizer keeps guard.
class Arena {
 public:
  Arena() = default;
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  explicit Arena(const Block64& block) : Arena(block.data()) { guarded_ = true; }

  // What is laid out from here on is kept by others, who know its size: without guards.
  void unguarded() { gap_ = 0, guarded_ = false; }

  // The memory of another arena's part, which is guarded likewise.
  static Arena within(void* base) {
    Arena arena(base);
    arena.guarded_ = true;
    return arena;
  }

  template <class T>
  T* take(int64_t n) {
    constexpr size_t kMost = size_t(1) << 62;  // more than there is, and sums of it do not wrap
    if (n < 0 || size_t(n) > kMost / sizeof(T) || used_ > kMost) throw std::bad_alloc();
    char* at = base_ ? base_ + used_ : nullptr;
    const size_t bytes = (size_t(n) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    if (at && guarded_) {
      platform::allow(at, bytes);  // where the last task's guards lay
      platform::forbid(at + bytes, gap_);
    }
    used_ += bytes + gap_;
    return reinterpret_cast<T*>(at);
  }
  size_t used() const { return used_; }

 private:
  char* base_ = nullptr;
  size_t used_ = 0, gap_ = platform::kGuard;
  bool guarded_ = false;
};

}  // namespace multihead
