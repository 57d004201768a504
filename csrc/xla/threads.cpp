#include "threads.h"

#include "engine.h"

namespace multihead::xla {

OnThreads::OnThreads(const ffi::ThreadPool& pool) : pool_(pool) {
  threads = int(pool.num_threads());
  schedule = [](const LentThreads& from, void (*task)(void*), void* data) {
    static_cast<const OnThreads&>(from).pool_.Schedule([task, data] { task(data); });
  };
  if (threads > 0) engine().borrow_threads(this);  // else it has none to lend
}

OnThreads::~OnThreads() { engine().borrow_threads(nullptr); }

}  // namespace multihead::xla
