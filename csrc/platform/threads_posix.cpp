#if !defined(_WIN32)

#include "threads.h"

#include <pthread.h>
#include <time.h>

namespace multihead::platform {
namespace {

bool read_clock(clockid_t id, std::chrono::nanoseconds* time) {
  timespec t{};
  if (clock_gettime(id, &t) != 0) return false;
  *time = std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  return true;
}

}  // namespace

void on_fork(void (*hook)()) { pthread_atfork(nullptr, nullptr, hook); }

std::chrono::nanoseconds processor_time() {
  std::chrono::nanoseconds time{};
  read_clock(CLOCK_THREAD_CPUTIME_ID, &time);
  return time;
}

#if defined(__APPLE__)

ThreadClock ThreadClock::of_this_thread() { return {}; }
bool ThreadClock::read(std::chrono::nanoseconds*) const { return false; }

#else

ThreadClock ThreadClock::of_this_thread() {
  ThreadClock clock;
  clockid_t id{};
  clock.known_ = pthread_getcpuclockid(pthread_self(), &id) == 0;
  clock.id_ = id;
  return clock;
}

bool ThreadClock::read(std::chrono::nanoseconds* time) const {
  return known_ && read_clock(clockid_t(id_), time);
}

#endif

}  // namespace multihead::platform

#endif
