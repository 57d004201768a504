// Partial results of attention, over some of the keys, and how they become one.
#pragma once

#include <limits>

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

// Of one query: the largest score (log2 units), the sum of exp2(score - max), and that sum times
// the mean value. A part that saw no key counts for nothing, whatever it holds.
template <class E>
struct Partial {
  Stat<E> max, sum;
  Acc<E>* out;
  bool seen;
};

// Adds up partial results in the order in which they come, into the first one's memory. The largest
// maximum must be known: all sums are brought to it.
template <class E>
class Merge {
 public:
  Merge(const Kernels<E>& kernels, int64_t values) : kernels_(kernels), values_(values) {}

  void see(const Partial<E>& part);  // all of them, before the first is added
  void add(const Partial<E>& part);
  // A score that joins the softmax and has no value: it is no key, so nothing is seen by it.
  void see(Stat<E> sink) { max_ = sink > max_ ? sink : max_; }
  void add(Stat<E> sink);

  bool seen() const { return seen_; }
  Stat<E> max() const { return max_; }
  Stat<E> sum() const { return sum_; }
  const Acc<E>* out() const { return out_; }  // not yet divided by the sum

 private:
  const Kernels<E>& kernels_;
  int64_t values_;
  bool seen_ = false;
  Stat<E> max_ = -std::numeric_limits<Stat<E>>::infinity(), sum_ = 0;
  Acc<E>* out_ = nullptr;
};

// Results of attention over parts of the keys, outs[i] (N, H, L, Dv) with their logarithms of sums
// lses[i] (N, H, L), as one: out and lse. -inf where a part saw no key.
struct MergeCall {
  const View* outs;
  const View* lses;
  int64_t parts;
  View out, lse;
};
void merge_attention(const KernelSet& set, const MergeCall& call);

}  // namespace multihead
