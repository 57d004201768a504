// Memory that nothing may touch, between the parts of a block: AddressSanitizer is told of it where
// it is compiled in. Else there is none.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define MULTIHEAD_GUARDS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MULTIHEAD_GUARDS
#endif
#endif

#ifdef MULTIHEAD_GUARDS
#include <sanitizer/asan_interface.h>
#endif

namespace multihead::platform {

#ifdef MULTIHEAD_GUARDS
constexpr size_t kGuard = 64;  // bytes
inline void forbid(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void allow(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
constexpr size_t kGuard = 0;
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}
#endif

}  // namespace multihead::platform
