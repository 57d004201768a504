// Memory from the system, aligned.
#pragma once

#include <cstddef>

namespace multihead::platform {

constexpr size_t kHugePage = size_t(2) << 20;

// Null if there is none. `bytes` is a multiple of `align`, a power of two from 8 on; a block that
// is aligned to kHugePage lies in huge pages if the system has them.
void* allocate(size_t align, size_t bytes) noexcept;
void release(void* data) noexcept;

}  // namespace multihead::platform
