#if !defined(_WIN32)

#include <dlfcn.h>

#include "library.h"

namespace multihead::platform {

void* find_library(const char* name) { return dlopen(name, RTLD_LAZY | RTLD_NOLOAD); }

Function find_function(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace multihead::platform

#endif
