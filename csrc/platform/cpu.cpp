#include "cpu.h"

#include <cstdint>

namespace multihead::platform {

#if defined(__x86_64__)

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

unsigned float_state() { return __builtin_ia32_stmxcsr(); }
void set_float_state(unsigned state) { __builtin_ia32_ldmxcsr(state); }

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }

#if defined(__aarch64__)
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

#endif

}  // namespace multihead::platform
