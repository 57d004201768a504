#if !defined(_WIN32)

#include <stdlib.h>
#include <sys/mman.h>

#include "memory.h"

namespace multihead::platform {

void* allocate(size_t align, size_t bytes) noexcept {
  void* data = nullptr;
  if (posix_memalign(&data, align, bytes) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (align == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

void release(void* data) noexcept { free(data); }

}  // namespace multihead::platform

#endif
