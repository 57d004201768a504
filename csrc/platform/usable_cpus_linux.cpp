// How many processors this process may use.
#if defined(__linux__)

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "cgroups.h"
#include "cpu.h"

namespace multihead::platform {

int usable_cpus() {
  int cpus = int(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  const double quota = cgroup_quota("");
  if (quota > 0 && quota < cpus) cpus = int(std::ceil(quota));
  return std::max(cpus, 1);
}

}  // namespace multihead::platform

#endif
