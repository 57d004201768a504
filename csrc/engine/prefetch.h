// What a task wants soon: products fetch it while they multiply. Memory that was last touched by
// another core or long ago is some hundred cycles away, and no prefetcher knows where tiles go on.
#pragma once

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

template <int N>
class PrefetchList {
 public:
  template <class T>
  void add(const T* at, int64_t elements) {
    const int64_t lines = divide_up(elements * int64_t(sizeof(T)), 64);
    if (at && lines > 0 && count_ < N) list_[count_++] = {reinterpret_cast<const char*>(at), lines};
  }
  // Valid as long as this is, and until something is added.
  Prefetch* get() {
    prefetch_ = {};
    if (count_ > 0) prefetch_ = {list_[0], list_ + 1, list_ + count_};
    return &prefetch_;
  }

 private:
  LineRange list_[N];
  int count_ = 0;
  Prefetch prefetch_;
};

}  // namespace multihead
