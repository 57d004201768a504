// The threads of the OpenMP runtime that PyTorch has loaded, offered to the engine. Its workers
// spin for milliseconds after each of its regions, and ours would have to share the cores with
// them, so that long a region of ours runs on them. Nothing is linked and nothing loaded; no
// PyTorch, no change.
#pragma once

#include "../engine/thread_pool.h"

namespace multihead::binding {

extern const ThreadSource kTorchThreads;

// After a call, with the GIL: finds the runtime if the call wanted for cores and Python has
// imported PyTorch. The loader is not asked within a call, where it would search the disk for a
// library that is not there, and where a fork by another thread would leave it half changed in the
// child.
void meet_torch();

}  // namespace multihead::binding
