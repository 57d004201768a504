// The threads of the OpenMP runtime that PyTorch has loaded, offered to the engine. Its workers
// spin for milliseconds after each of its regions, and ours would have to share the cores with
// them, so that long a region of ours runs on them. Nothing is linked and nothing loaded; no
// PyTorch, no change.
#pragma once

#include "../engine/thread_pool.h"

namespace multihead::binding {

extern const ThreadSource kTorchThreads;

}  // namespace multihead::binding
