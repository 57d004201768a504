#include "cpu.h"

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>

#include "x86_features.h"
#endif

namespace multihead::platform {

#if defined(__x86_64__)

// Not __builtin_cpu_supports: not every compiler's runtime library has what it asks.
static X86Bits read_bits() {
  X86Bits found;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  found.leaf1 = c;
  if (!(c & bit_OSXSAVE)) return found;
  asm volatile("xgetbv" : "=a"(found.saved), "=d"(d) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.leaf7 = b;
  found.leaf7_edx = d;
  const bool more = a >= 1;
  if (more && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.leaf7_1 = a;
  return found;
}

static const X86Bits g_found = read_bits();

bool has_avx2() { return has_avx2(g_found); }
bool has_avx512() { return has_avx512(g_found); }
bool has_avx512_bf16() { return has_avx512_bf16(g_found); }
bool multiplies_pairs_fast() { return multiplies_pairs_fast(g_found); }

bool has_amx() {
  static std::atomic<int> usable{-1};  // not known yet; asking twice does no harm
  if (usable < 0) usable = has_amx(g_found) && may_use_tiles();
  return usable > 0;
}

unsigned float_state() { return __builtin_ia32_stmxcsr(); }
void set_float_state(unsigned state) { __builtin_ia32_ldmxcsr(state); }

#else

bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
bool multiplies_pairs_fast() { return true; }

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
