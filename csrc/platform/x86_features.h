// What an x86-64 processor can do, by the bits in which CPUID and XGETBV say so. A kernel set asks
// for everything that its compiler's options let the compiler use, what they imply included: where
// a hypervisor hides some of it, the set does not run.
#pragma once

#include <cstdint>

namespace multihead::platform {

// CPUID's leaf 1 in ECX, 7 in EBX and EDX, the second page of 7 in EAX; XCR0, which says the
// registers that the system saves.
struct X86Bits {
  uint32_t leaf1 = 0, leaf7 = 0, leaf7_edx = 0, leaf7_1 = 0, saved = 0;

  constexpr bool all_of(const X86Bits& asked) const {
    return (leaf1 & asked.leaf1) == asked.leaf1 && (leaf7 & asked.leaf7) == asked.leaf7 &&
           (leaf7_edx & asked.leaf7_edx) == asked.leaf7_edx &&
           (leaf7_1 & asked.leaf7_1) == asked.leaf7_1 && (saved & asked.saved) == asked.saved;
  }
};

namespace x86 {

constexpr uint32_t bits() { return 0; }
template <class... More>
constexpr uint32_t bits(int first, More... more) {
  return uint32_t(1) << first | bits(more...);
}

// SSE3, SSSE3, FMA, SSE4.1, SSE4.2, POPCNT, XSAVE, OSXSAVE, AVX, F16C
constexpr uint32_t kLeaf1 = bits(0, 9, 12, 19, 20, 23, 26, 27, 28, 29);
constexpr uint32_t kAvx2 = bits(5);
constexpr uint32_t kAvx512 = kAvx2 | bits(16, 17, 30, 31);  // F, DQ, BW, VL
constexpr uint32_t kAmxBf16 = bits(22), kAmxTile = bits(24);
constexpr uint32_t kAvx512Bf16 = bits(5);
constexpr uint32_t kAvxSaved = bits(1, 2), kAvx512Saved = kAvxSaved | bits(5, 6, 7);
constexpr uint32_t kTilesSaved = bits(17, 18);

}  // namespace x86

constexpr bool has_avx2(const X86Bits& found) {
  return found.all_of({x86::kLeaf1, x86::kAvx2, 0, 0, x86::kAvxSaved});
}
constexpr bool has_avx512(const X86Bits& found) {
  return found.all_of({x86::kLeaf1, x86::kAvx512, 0, 0, x86::kAvx512Saved});
}
constexpr bool has_avx512_bf16(const X86Bits& found) {
  return has_avx512(found) && found.all_of({0, 0, 0, x86::kAvx512Bf16, 0});
}
// The processor has them; the system must be asked, too.
constexpr bool has_amx(const X86Bits& found) {
  return has_avx512_bf16(found) &&
         found.all_of({0, 0, x86::kAmxBf16 | x86::kAmxTile, 0, x86::kTilesSaved});
}
constexpr bool multiplies_pairs_fast(const X86Bits& found) {
  return !found.all_of({0, 0, x86::kAmxBf16, 0, 0});
}

}  // namespace multihead::platform
