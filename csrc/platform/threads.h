// What the standard library does not say about threads.
#pragma once

#include <chrono>
#include <cstdint>

namespace multihead::platform {

// In a loop that waits for another thread.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Has `hook` called in every forked child; nothing where processes do not fork.
void on_fork(void (*hook)());

// The processor time that the calling thread has had.
std::chrono::nanoseconds processor_time();

// The same of any thread, from any thread.
class ThreadClock {
 public:
  static ThreadClock of_this_thread();
  // False if the thread has ended, or the system does not tell.
  bool read(std::chrono::nanoseconds* time) const;
  explicit operator bool() const { return known_; }

 private:
  bool known_ = false;
  [[maybe_unused]] int64_t id_ = 0;  // not on every system
};

}  // namespace multihead::platform
