// What XLA's handlers share with each other: the engine, and its outcomes as XLA's errors.
#pragma once

#include "../api.h"
#include "ffi.h"
#include "threads.h"

namespace multihead::xla {

const EngineTable& engine();

ffi::Error error_of(const faces::Outcome& outcome);

// The body of a handler, which returns the engine's outcome: nothing is thrown into XLA.
template <class F>
ffi::Error checked(const ffi::ThreadPool& pool, F f) noexcept {
  faces::Outcome of_engine;
  const faces::Outcome outcome = faces::guarded([&] {
    const OnThreads threads(pool);
    of_engine = f();
  });
  return error_of(outcome.status == faces::Status::Done ? of_engine : outcome);
}

}  // namespace multihead::xla
