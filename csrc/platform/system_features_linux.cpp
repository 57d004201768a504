// What the system says of the processor, and lets a process use of it.
#if defined(__linux__)

#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu.h"

namespace multihead::platform {

#if defined(__x86_64__)
bool may_use_tiles() {
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#else
bool may_use_tiles() { return false; }
#endif

#if defined(__aarch64__)
bool has_neon_bf16() {
  constexpr unsigned long bf16 = 1ul << 14;  // HWCAP2_BF16
  return getauxval(AT_HWCAP2) & bf16;
}
#else
bool has_neon_bf16() { return false; }
#endif

}  // namespace multihead::platform

#endif
