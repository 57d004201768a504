// XLA's threads, which work for the engine while a handler runs.
#pragma once

#include "../engine/lent_threads.h"
#include "ffi.h"

namespace multihead::xla {

class OnThreads : LentThreads {
 public:
  explicit OnThreads(const ffi::ThreadPool& pool);
  ~OnThreads();
  OnThreads(const OnThreads&) = delete;

 private:
  mutable ffi::ThreadPool pool_;
};

}  // namespace multihead::xla
