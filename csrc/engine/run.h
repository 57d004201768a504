// How a call runs: memory sized up front, then its phases.
#pragma once

#include <utility>

#include "attention.h"
#include "cpu.h"

namespace multihead {

// What every call has: kernels, workers, the plan of its batch, and its phases.
template <class T>
struct Call {
  const KernelSet& set = kernels();
  const Kernels<T>& k = typed<T>(set);
  const Resources resources;
  const int workers;
  Plan plan;
  WorkerMemory memory;
  std::vector<Phase> phases;

  explicit Call(Plan p, const Resources& r = {})
      : resources(r), workers(r.threads > 0 ? r.threads : num_threads()), plan(std::move(p)) {}
};

// The memory that `layout` takes.
template <class Layout>
size_t layout_bytes(Layout layout) {
  Arena none;
  layout(none);
  return none.used();
}

// `layout` takes memory from an arena: as much for any number of threads. `layout_workers` takes
// what the workers need, after `passes` has listed the phases and said how much that is. All three
// run twice: to learn the sizes, and then for real; `before` runs between.
template <class T, class Layout, class LayoutWorkers, class Passes, class Before>
void execute(Call<T>& call, Layout layout, LayoutWorkers layout_workers, Passes passes,
             Before before) {
  const size_t bytes = layout_bytes(layout);
  layout_bytes(layout_workers);
  passes();
  const Resources& r = call.resources;
  const Block64 block(r.workspace ? 0 : bytes, r.allocator);
  const Block64 of_workers(layout_bytes(layout_workers), r.allocator);
  Arena arena(r.workspace ? r.workspace : block.data()), arena_of_workers(of_workers.data());
  layout(arena);
  layout_workers(arena_of_workers);
  before();
  call.phases.clear();
  passes();
  if (r.ready) r.ready();
  run_phases(call.phases, call.workers);
}

}  // namespace multihead
