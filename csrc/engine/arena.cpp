#include "arena.h"

#include <mutex>
#include <new>
#include <vector>

#include "../platform/memory.h"

namespace multihead {
namespace {

using platform::kHugePage;

constexpr size_t kKept = size_t(128) << 20;  // bytes of large blocks kept for the next call

void* allocate(size_t bytes) {
  void* data = platform::allocate(bytes >= kHugePage ? kHugePage : kAlign, bytes);
  if (!data) throw std::bad_alloc();
  return data;
}

// Large blocks that came back: a training step asks for the same ones over and over, and pages new
// from the system cost up to a tenth of it. Whoever finds the list in use goes to the system.
class Kept {
 public:
  // A block of at least `bytes` and at most twice that, or null; `bytes` becomes its size.
  void* take(size_t& bytes) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return nullptr;
    for (size_t n = blocks_.size(); n > 0; --n) {
      const Entry entry = blocks_[n - 1];
      if (entry.bytes < bytes || entry.bytes > 2 * bytes) continue;
      blocks_.erase(blocks_.begin() + int64_t(n) - 1);
      total_ -= entry.bytes;
      bytes = entry.bytes;
      return entry.data;
    }
    return nullptr;
  }
  bool give(void* data, size_t bytes) noexcept {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock || bytes > kKept) return false;
    while (total_ + bytes > kKept) {  // the oldest make room
      platform::release(blocks_.front().data);
      total_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
    try {
      blocks_.push_back({data, bytes});
    } catch (const std::bad_alloc&) {
      return false;
    }
    total_ += bytes;
    return true;
  }

 private:
  struct Entry {
    void* data;
    size_t bytes;
  };
  std::mutex busy_;
  std::vector<Entry> blocks_;
  size_t total_ = 0;
};

// Made when the library is loaded, so that no fork falls into it; outlives whoever gives back late.
Kept* const g_kept = new Kept;

}  // namespace

Block64::Block64(size_t bytes, const Allocator& from) : from_(from) {
  if (bytes == 0) return;
  bytes_ = (bytes + kAlign - 1) / kAlign * kAlign;
  if (from_.allocate) {
    if (from_.allocate(&data_, kAlign, bytes_) != 0) data_ = nullptr;
    if (!data_) throw std::bad_alloc();
    return;
  }
  if (bytes_ >= kHugePage) {
    bytes_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    data_ = g_kept->take(bytes_);
  }
  if (!data_) data_ = allocate(bytes_);
}

Block64::~Block64() {
  if (data_) platform::allow(data_, bytes_);
  if (from_.allocate) {
    if (data_) from_.release(data_);
  } else if (!(bytes_ >= kHugePage && data_ && g_kept->give(data_, bytes_))) {
    platform::release(data_);
  }
}

}  // namespace multihead
