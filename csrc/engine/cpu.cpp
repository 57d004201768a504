#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace multihead {

std::vector<const KernelSet*> available_kernels() {
  std::vector<const KernelSet*> sets;
#if defined(MULTIHEAD_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    sets.push_back(&avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    sets.push_back(&avx2_kernels());
#elif defined(MULTIHEAD_ARM64)
  sets.push_back(&neon_kernels());
#endif
  sets.push_back(&baseline_kernels());
  return sets;
}

static const KernelSet* choose_kernels() {
  const std::vector<const KernelSet*> sets = available_kernels();
  const char* wanted = std::getenv("MULTIHEAD_ISA");
  if (!wanted || !*wanted) return sets.front();
  std::string names;
  for (const KernelSet* set : sets) {
    if (std::string(wanted) == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("MULTIHEAD_ISA: expected one of " + names +
                              " (what this CPU can run), got '" + wanted + "'");
}

const KernelSet& kernels() {
  static const KernelSet* const set = choose_kernels();
  return *set;
}

#if defined(__linux__)
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
#endif

int usable_cpus() {
  int cpus = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = CPU_COUNT(&set);
  const double quota = cgroup_quota();
  if (quota > 0) cpus = std::min(cpus, int(std::ceil(quota)));
#endif
  return std::max(cpus, 1);
}

#if defined(__x86_64__)
unsigned float_state() { return __builtin_ia32_stmxcsr(); }
void set_float_state(unsigned state) { __builtin_ia32_ldmxcsr(state); }
#elif defined(__aarch64__)
unsigned float_state() {
  uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return unsigned(state);
}
void set_float_state(unsigned state) { asm volatile("msr fpcr, %0" : : "r"(uint64_t(state))); }
#else
unsigned float_state() { return 0; }
void set_float_state(unsigned) {}
#endif

}  // namespace multihead
