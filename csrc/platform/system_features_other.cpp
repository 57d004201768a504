// What the system says of the processor, and lets a process use of it.
#if !defined(__linux__)

#include "cpu.h"

#if defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>
#endif

namespace multihead::platform {

bool may_use_tiles() { return false; }  // other systems have other ways to ask

#if defined(__APPLE__) && defined(__aarch64__)
bool has_neon_bf16() {
  int has = 0;
  size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &bytes, nullptr, 0) == 0 && has;
}
#else
bool has_neon_bf16() { return false; }
#endif

}  // namespace multihead::platform

#endif
