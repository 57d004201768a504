#if defined(_WIN32)

#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include "threads.h"

namespace multihead::platform {

void on_fork(void (*)()) {}

std::chrono::nanoseconds processor_time() {
  FILETIME begun, ended, kernel, user;  // in units of 100 ns
  if (!GetThreadTimes(GetCurrentThread(), &begun, &ended, &kernel, &user)) return {};
  const auto ticks = [](FILETIME t) {
    return int64_t(uint64_t(t.dwHighDateTime) << 32 | t.dwLowDateTime);
  };
  return std::chrono::nanoseconds(100 * (ticks(kernel) + ticks(user)));
}

ThreadClock ThreadClock::of_this_thread() { return {}; }
bool ThreadClock::read(std::chrono::nanoseconds*) const { return false; }

}  // namespace multihead::platform

#endif
