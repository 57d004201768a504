// Calls that end early, since their caller wants nothing of them any more: a signal came, perhaps.
//
// The thread that calls the engine asks its `Poll` some fifty times a second while it works; once
// this says so, every thread of the call returns from what it does. Tasks that may take more than
// some milliseconds look at `ending` in their loops.
#pragma once

#include <atomic>
#include <chrono>

namespace multihead {

// Thrown by a call that ended early. What it wrote is undefined; nothing else has changed.
struct Interrupted {};

// Whether the call at hand is to end.
using Poll = bool (*)();

// For the calls of this thread; null: none, as at first.
void set_poll(Poll poll);

// One call, or one region of it.
class Interruption {
 public:
  Interruption();  // with the poll of this thread

  bool told() const { return told_.load(std::memory_order_relaxed); }
  void tell() { told_.store(true, std::memory_order_relaxed); }
  void ask();  // the poll, if that was some time ago

 private:
  const Poll poll_;
  std::chrono::steady_clock::time_point next_{};  // of asking
  unsigned looks_ = 0;
  std::atomic<bool> told_{false};
};

// For as long as a thread works for a call. `asks`: it is the one that called. What its poll calls
// may be a call of its own: the thread works for that one then, and for this one again.
class WorksFor {
 public:
  WorksFor(Interruption& call, bool asks);
  ~WorksFor();
  WorksFor(const WorksFor&) = delete;
  WorksFor& operator=(const WorksFor&) = delete;

 private:
  Interruption* const before_;
  const bool asked_;
};

// Whether the call that this thread works for ends. A task then returns: nobody reads its results.
bool ending();

}  // namespace multihead
