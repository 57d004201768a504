// What GCC and Clang offer beyond the standard. Kernels include it: it defines macros alone, so
// that it leaves no symbol.
#pragma once

#define MULTIHEAD_PRAGMA(text) _Pragma(#text)

// Before a loop of at most n turns, their number a constant: unrolled, its arrays are registers.
#define MULTIHEAD_UNROLL(n) MULTIHEAD_PRAGMA(GCC unroll n)

#define MULTIHEAD_ALWAYS_INLINE __attribute__((always_inline))
#define MULTIHEAD_INLINE inline MULTIHEAD_ALWAYS_INLINE

// Asks for the line at an address, in L1 or in L2.
#define MULTIHEAD_PREFETCH_L1(address) __builtin_prefetch(address, 0, 3)
#define MULTIHEAD_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)

// The compiler takes a vector for a new one from here on.
#define MULTIHEAD_FORGET(vector) asm volatile("" : "+x"(vector))

// Of a function that others find in the shared library.
#if defined(_WIN32)
#define MULTIHEAD_EXPORT __declspec(dllexport)
#else
#define MULTIHEAD_EXPORT __attribute__((visibility("default")))
#endif
