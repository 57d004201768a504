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
  const int workers = num_threads();
  Plan plan;
  WorkerMemory memory;
  std::vector<Phase> phases;

  explicit Call(Plan p) : plan(std::move(p)) {}
};

// `layout` takes memory from an arena, `passes` lists the phases and says what memory their
// workers need. Both run twice: to learn the size, and then for real; `before` runs between.
template <class Layout, class Passes, class Before>
void execute(std::vector<Phase>& phases, int workers, Layout layout, Passes passes, Before before) {
  Arena none, sized;
  layout(none);
  passes();
  layout(sized);
  const Block64 block(sized.used());
  Arena arena(block.data());
  layout(arena);
  before();
  phases.clear();
  passes();
  run_phases(phases, workers);
}

}  // namespace multihead
