// Threads that another runtime lends to the calls of one thread, instead of the engine's own: they
// may spin on the cores still, where ours would have to be woken and would stand in their way.
#pragma once

#include "thread_pool.h"

namespace multihead {

struct LentThreads {
  int threads;  // how many there are, the calling one among them
  // Has one of them run task(data), now or later: once.
  void (*schedule)(const LentThreads& from, void (*task)(void*), void* data);
};

// For the calls of this thread; null: none, as at first.
void borrow_threads(const LentThreads* threads);
const LentThreads* borrowed_threads();

// Runs work(data, worker) for workers below `workers`, the caller among them as worker 0; those to
// whom no thread has come when the caller is done are left out.
void run_on(const LentThreads& threads, int workers, Work work, void* data);

}  // namespace multihead
