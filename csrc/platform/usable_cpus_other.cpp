// How many processors this process may use.
#if !defined(__linux__)

#include <algorithm>
#include <thread>

#include "cpu.h"

#if defined(_WIN32)
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

namespace multihead::platform {

int usable_cpus() {
  int cpus = int(std::thread::hardware_concurrency());
#if defined(_WIN32)
  DWORD_PTR process = 0, system = 0;  // of the process's own group of at most 64
  if (cpus <= 64 && GetProcessAffinityMask(GetCurrentProcess(), &process, &system) && process)
    cpus = __builtin_popcountll(process);
#endif
  return std::max(cpus, 1);
}

}  // namespace multihead::platform

#endif
