// The GIL, given up around a call of the engine. A daemon thread may come back from one when the
// interpreter is ending or has ended. Up to CPython 3.13 it is then ended where it asks for the
// GIL, by an exception that no destructor lets through: the whole process would abort. It sleeps
// instead until the process ends, as in later versions. The thread that ends the interpreter may
// call too, from finalizers: it is let through.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace multihead::binding {

class ReleasedGil {
 public:
  ReleasedGil() : ends_(!Py_IsInitialized()), state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    if (!ends_ && !Py_IsInitialized()) sleep_for_good();
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // the end of this thread, which leaves this block never
      sleep_for_good();
    }
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  [[noreturn]] static void sleep_for_good() {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
  }

  const bool ends_;  // the interpreter
  PyThreadState* const state_;
};

}  // namespace multihead::binding
