// Signals that come while the engine works: Ctrl-C, above all.
#pragma once

#include <nanobind/nanobind.h>

namespace multihead::binding {

// While this lives, the engine's calls of this thread end early once a signal's handler has raised:
// on Python's main thread, where handlers run. To be made under the GIL.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

 private:
  bool on_;
};

// Finds Python's main thread, again in a forked child.
void find_main_thread();

}  // namespace multihead::binding
