// What Python hands over, as the engine takes it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <deque>
#include <vector>

#include "../api.h"
#include "gil.h"
#include "signals.h"
#include "torch_threads.h"

namespace multihead::binding {

const EngineTable& engine();

// Throws what the engine said, if it said anything: MemoryError, ValueError or RuntimeError; or
// what a signal's handler raised.
void check(const faces::Outcome& outcome);

// NumPy's arrays are known from then on; once, before all else.
void find_numpy();

// A view of an array or tensor in CPU memory; none for None. Through a view of `writable` the
// engine writes: an array that may not be written to is an error that names it.
View view_of(nanobind::handle object);
View writable(nanobind::handle object, const char* name);

// int64, side by side.
struct Integers {
  const int64_t* data;
  int64_t count;
};

// Copies of the integers of a call, made under the GIL: they are checked without it, and lead to
// memory, so that no other thread may change them between.
class IntegerCopies {
 public:
  Integers of(nanobind::handle object);

 private:
  std::deque<std::vector<int64_t>> held_;
};

// From now on objects of this type, and of types derived from it, are read through the C functions
// that it offers in its capsule "dlpack_exchange_api". False if that is of another major version.
bool exchange_with(nanobind::handle type, nanobind::handle capsule);

// The GIL is released around a call of the engine, which a signal's exception ends.
template <class F>
void run_engine(F f) {
  faces::Outcome outcome;
  {
    const Signals signals;
    const ReleasedGil released;
    outcome = f();
  }
  check(outcome);
  meet_torch();
}

}  // namespace multihead::binding
