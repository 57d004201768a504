// Memory of the workers for the task at hand.
#pragma once

#include <type_traits>

#include "../kernels/table.h"
#include "arena.h"
#include "view.h"

namespace multihead {

// The bytes that a structure takes, whose constructor takes them from an arena.
template <class S, class... Arguments>
size_t bytes_of(const Arguments&... arguments) {
  Arena none;
  S(none, arguments...);
  return none.used();
}

// A tile's memory as that of sums, where they are of one type.
template <class E>
Acc<E>* as_sums(E* tile) {
  if constexpr (std::is_same_v<E, Acc<E>>)
    return tile;
  else
    return nullptr;
}

// And back.
template <class E>
E* as_tile(Acc<E>* sums) {
  if constexpr (std::is_same_v<E, Acc<E>>)
    return sums;
  else
    return nullptr;
}

// A tile of scores, and where its probabilities go: the same memory where the types are the same.
template <class E>
Acc<E>* take_scores(Arena& arena, E*& other) {
  Acc<E>* const scores = arena.take<Acc<E>>(kTile * kTile);
  if constexpr (std::is_same_v<E, Acc<E>>)
    other = scores;
  else
    other = arena.take<E>(kTile * kTile);
  return scores;
}

// Each task takes from its worker's part anew.
class WorkerMemory {
 public:
  explicit WorkerMemory(int workers) : workers_(workers) {}

  int workers() const { return workers_; }
  void layout(Arena& arena, size_t each) {
    each_ = size_t(round_up(int64_t(each), 4096));
    base_ = arena.take<char>(int64_t(each_) * workers_);
  }
  Arena of(int worker) const { return Arena::within(base_ + size_t(worker) * each_); }

 private:
  int workers_;
  size_t each_ = 0;
  char* base_ = nullptr;
};

}  // namespace multihead
