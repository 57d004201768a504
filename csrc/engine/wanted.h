// What a task wants soon: products fetch it while they multiply. Memory that was last touched by
// another core or long ago is some hundred cycles away, and no prefetcher knows where tiles go on.
#pragma once

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

template <int N>
class Wanted {
 public:
  template <class T>
  void add(const T* at, int64_t elements) {
    const int64_t lines = divide_up(elements * int64_t(sizeof(T)), 64);
    if (at && lines > 0 && count_ < N) list_[count_++] = {reinterpret_cast<const char*>(at), lines};
  }
  // Valid as long as this is, and until something is added.
  Ahead* ahead() {
    ahead_ = {};
    if (count_ > 0) ahead_ = {list_[0], list_ + 1, list_ + count_};
    return &ahead_;
  }

 private:
  Range list_[N];
  int count_ = 0;
  Ahead ahead_;
};

}  // namespace multihead
