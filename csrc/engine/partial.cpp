#include "partial.h"

#include <algorithm>
#include <cmath>

#include "kernel_sets.h"
#include "scratch.h"
#include "spec.h"
#include "thread_pool.h"

namespace multihead {

template <class E>
void Merge<E>::see(const Partial<E>& part) {
  seen_ |= part.seen;
  if (part.seen) max_ = std::max(max_, part.max);
}

template <class E>
void Merge<E>::add(const Partial<E>& part) {
  constexpr Stat<E> nothing = -std::numeric_limits<Stat<E>>::infinity();
  Stat<E> factor = part.max - (max_ == nothing ? Stat<E>(0) : max_);
  kernels_.exp2_all(&factor, 1);
  if (!part.seen) factor = 0;
  if (part.seen) sum_ += part.sum * factor;
  if (!out_) {
    out_ = part.out;
    kernels_.scale_sums(out_, out_, values_, factor);
  } else if (part.seen) {
    kernels_.add_scaled(out_, part.out, values_, factor);
  }
}

template <class E>
void Merge<E>::add(Stat<E> sink) {
  Stat<E> weight = sink - max_;
  kernels_.exp2_all(&weight, 1);
  sum_ += weight;
}

template class Merge<float>;
template class Merge<double>;

namespace {

constexpr double kLn2 = 0.6931471805599453;

// The rows of one head.
template <class E>
void merge_head(const Kernels<E>& kernels, const MergeCall& call, int64_t n, int64_t h,
                Arena scratch) {
  constexpr double nothing = -std::numeric_limits<double>::infinity();
  const int64_t values = call.out.size[3];
  Acc<E>* const first = scratch.take<Acc<E>>(values);
  Acc<E>* const other = scratch.take<Acc<E>>(values);
  for (int64_t q = 0; q < call.out.size[2]; ++q) {
    const auto part = [&](int64_t i) {
      const View& lse = call.lses[i];
      const double x = double(lse.get<E>(lse.at(n, h, q)));
      return Partial<E>{Stat<E>(x * kLog2E), 1, i == 0 ? first : other, x != nothing};
    };
    Merge<E> merge(kernels, values);
    for (int64_t i = 0; i < call.parts; ++i) merge.see(part(i));
    for (int64_t i = 0; i < call.parts; ++i) {
      const Partial<E> here = part(i);
      const View& out = call.outs[i];
      for (int64_t d = 0; d < values; ++d) here.out[d] = out.get<Acc<E>>(out.at(n, h, q, d));
      merge.add(here);
    }
    const bool seen = merge.seen();
    for (int64_t d = 0; d < values; ++d)
      call.out.set(call.out.at(n, h, q, d), seen ? Acc<E>(first[d] / merge.sum()) : Acc<E>(0));
    const double lse = double(merge.max()) * kLn2 + std::log(double(merge.sum()));
    call.lse.set(call.lse.at(n, h, q), Acc<E>(seen ? lse : nothing));
  }
}

}  // namespace

void merge_attention(const KernelSet& set, const MergeCall& call) {
  dispatch(call.out.dtype, [&]<class E>() {
    const Kernels<E>& kernels = typed<E>(set);
    const int workers = num_threads();
    const int64_t heads = call.out.size[1];
    Arena count;
    count.take<Acc<E>>(call.out.size[3]);
    count.take<Acc<E>>(call.out.size[3]);
    WorkerMemory memory(workers);
    const Block64 block(count.used() * size_t(workers) + 4096 * size_t(workers));
    Arena arena(block);
    memory.layout(arena, count.used());
    run_phases({{call.out.size[0] * heads,
                 [&](int64_t task, int worker) {
                   merge_head<E>(kernels, call, task / heads, task % heads, memory.of(worker));
                 }}},
               workers);
  });
}

}  // namespace multihead
