#if defined(_WIN32)

#include <malloc.h>

#include "memory.h"

namespace multihead::platform {

void* allocate(size_t align, size_t bytes) noexcept { return _aligned_malloc(bytes, align); }
void release(void* data) noexcept { _aligned_free(data); }

}  // namespace multihead::platform

#endif
