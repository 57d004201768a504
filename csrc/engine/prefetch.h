// What a task wants soon: products fetch it while they multiply. Memory that was last touched by
// another core or long ago is some hundred cycles away, and no prefetcher knows where tiles go on.
#pragma once

#include "keys.h"

namespace multihead {

class PrefetchList {
 public:
  template <class T>
  void add(const T* at, int64_t elements) {
    const int64_t lines = divide_up(elements * int64_t(sizeof(T)), 64);
    if (at && lines > 0 && count_ < kMost)
      list_[count_++] = {reinterpret_cast<const char*>(at), lines};
  }
  // Some of a tile's rows in an array of the caller's.
  void add_rows(const TokenRows& of, void* const* rows, int64_t count, int64_t features) {
    if (of.stride != 1 || count <= 0) return;
    const int64_t bytes = features * of.item();
    if (of.row_bytes == bytes) return add(static_cast<const char*>(rows[0]), count * bytes);
    for (int64_t i = 0; i < count; ++i) add(static_cast<const char*>(rows[i]), bytes);
  }
  // Valid as long as this is, and until something is added.
  Prefetch* get() {
    prefetch_ = {};
    if (count_ > 0) prefetch_ = {list_[0], list_ + 1, list_ + count_};
    return &prefetch_;
  }

 private:
  static constexpr int kMost = 4 * int(kTile);  // rows of two tiles, and what else there is

  LineRange list_[kMost];
  int count_ = 0;
  Prefetch prefetch_;
};

}  // namespace multihead
