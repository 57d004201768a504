// How a call runs: what it may use, memory sized up front, then its phases.
#pragma once

#include <functional>

#include "attention.h"
#include "kernel_sets.h"

namespace multihead {

// How a caller may have a call run; nothing set: the best kernels, the engine's threads and memory.
struct Resources {
  const KernelSet* kernels = nullptr;  // null: the set in use
  int threads = 0;                     // at most; 0: all
  Allocator allocator;                 // of what the workspace does not hold
  void* workspace = nullptr;           // 64-byte aligned, as large as the call's size says
  bool for_sizes = false;              // nothing will run: the call is asked for its sizes alone
  // Called when nothing can fail any more, before anything is computed.
  std::function<void()> ready;
};

// What every call is prepared with, once: kernels, the plan of its batch, masks, attention.
template <class E>
struct PreparedCall {
  const AttentionSpec& spec;
  const Resources& resources;
  const KernelSet& set;
  const Kernels<E>& kernels;
  const Plan plan;
  WorkerMemory memory;
  Masks<E> masks;
  Rotation<E> rotation;
  Attention<E> attention;
  std::vector<Phase> phases;

  PreparedCall(const AttentionSpec& s, const Resources& r, const KernelSet& kernel_set)
      : spec(s),
        resources(r),
        set(kernel_set),
        kernels(typed<E>(set)),
        plan(spec, kernels.layout, r.for_sizes ? Plan::For::Sizes : Plan::For::Call),
        memory(workers_for(plan.work(), r.threads)),
        masks(plan, set, kernels, spec),
        rotation(kernels, spec.rotary),
        attention({plan, kernels, masks, rotation, memory}, spec.rules) {}

  // `layout` takes the memory of the call from an arena, as much for any number of workers, and
  // `layout_workers` what depends on their number; each of them has `scratch` bytes for its tasks.
  // Both run twice: to learn the sizes, and then for real. `add_passes` lists the phases, which
  // then run.
  template <class Layout, class LayoutWorkers, class Passes>
  void run(Layout layout, LayoutWorkers layout_workers, size_t scratch, Passes add_passes) {
    const auto all_workers = [&](Arena& arena) {
      layout_workers(arena);
      memory.layout(arena, scratch);
    };
    const Block64 block(resources.workspace ? 0 : layout_bytes(layout), resources.allocator);
    const Block64 of_workers(layout_bytes(all_workers), resources.allocator);
    Arena arena = resources.workspace ? Arena(resources.workspace) : Arena(block);
    Arena arena_of_workers(of_workers);
    layout(arena);
    all_workers(arena_of_workers);
    add_passes();
    if (resources.ready) resources.ready();
    WorkerState state;
    if constexpr (kRounds<E>) state = {set.enter, set.leave};
    run_phases(phases, memory.workers(), state);
  }

  template <class Layout>
  static size_t layout_bytes(Layout layout) {
    Arena none;
    layout(none);
    return none.used();
  }
};

}  // namespace multihead
