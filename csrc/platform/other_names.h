// A function by another name too, for programs that were compiled against another library's header.
#pragma once

#include "compiler.h"

// A program's own function of that name comes first. On macOS the other library is there, and the
// linker gives nothing a second name.
#if defined(__APPLE__)
#define MULTIHEAD_ALSO_NAMED(function, name)
#elif defined(_WIN32)
#define MULTIHEAD_ALSO_NAMED(function, name) \
  MULTIHEAD_EXPORT decltype(name) also_##name __asm__(#name) __attribute__((alias(#function)));
#else
#define MULTIHEAD_ALSO_NAMED(function, name)                 \
  MULTIHEAD_EXPORT decltype(name) also_##name __asm__(#name) \
      __attribute__((weak, alias(#function)));
#endif
