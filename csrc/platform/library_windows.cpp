#if defined(_WIN32)

#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include "library.h"

namespace multihead::platform {

void* find_library(const char* name) {
  HMODULE library = nullptr;
  return GetModuleHandleExA(0, name, &library) ? library : nullptr;
}

Function find_function(void* library, const char* name) {
  return reinterpret_cast<Function>(GetProcAddress(static_cast<HMODULE>(library), name));
}

}  // namespace multihead::platform

#endif
