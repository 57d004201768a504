#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace multihead::platform {

#if defined(__x86_64__)

// Not __builtin_cpu_supports: not every compiler's runtime library has what it asks.
namespace {

struct Features {
  unsigned leaf1 = 0, leaf7 = 0;        // CPUID 1 in ECX, 7 in EBX
  unsigned leaf7_edx = 0, leaf7_1 = 0;  // 7 in EDX; its second page in EAX
  unsigned saved = 0;                   // registers that the system saves: XCR0

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    leaf1 = c;
    if (!(leaf1 & bit_OSXSAVE)) return;
    asm volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    leaf7 = b;
    leaf7_edx = d;
    const bool more = a >= 1;
    if (more && __get_cpuid_count(7, 1, &a, &b, &c, &d)) leaf7_1 = a;
  }
};

const Features& features() {
  static const Features found;
  return found;
}

bool has(unsigned leaf1, unsigned leaf7, unsigned saved) {
  const Features& found = features();
  return (found.leaf1 & leaf1) == leaf1 && (found.leaf7 & leaf7) == leaf7 &&
         (found.saved & saved) == saved;
}

}  // namespace

bool has_avx2() { return has(bit_AVX | bit_FMA | bit_F16C, bit_AVX2, 0x6); }

bool has_avx512() {
  return has(bit_AVX | bit_FMA, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL, 0xE6);
}

bool has_avx512_bf16() {
  constexpr unsigned bf16 = 1u << 5;
  return has_avx512() && features().leaf7_1 & bf16;
}

constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;

bool multiplies_pairs_fast() { return !(features().leaf7_edx & kAmxBf16); }

bool has_amx() {
  constexpr unsigned saved = 3u << 17;
  static const bool usable = has_avx512_bf16() && (features().leaf7_edx & kAmxBf16) &&
                             (features().leaf7_edx & kAmxTile) &&
                             (features().saved & saved) == saved && may_use_tiles();
  return usable;
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
