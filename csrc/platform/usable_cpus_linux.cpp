// How many processors this process may use.
#if defined(__linux__)

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "cpu.h"

namespace multihead::platform {

// Cores that the quota of one cgroup allows; 0: no limit.
static double cgroup_quota() {
  double quota = 0, period = 0;
  std::string first;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> first >> period && first != "max")
    return std::atof(first.c_str()) / period;
  std::ifstream v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (v1 >> quota && v1_period >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

int usable_cpus() {
  int cpus = int(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  const double quota = cgroup_quota();
  if (quota > 0) cpus = std::min(cpus, int(std::ceil(quota)));
  return std::max(cpus, 1);
}

}  // namespace multihead::platform

#endif
