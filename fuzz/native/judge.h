// What is wrong with a call, said.
#pragma once

#include <cstdint>
#include <string>

#include "oracle.h"

namespace fuzz {

inline std::string g_text;    // the input at hand, in words
inline uint64_t g_calls = 0;  // of the C functions

[[noreturn]] void found(const std::string& what);

double tolerance(bool gradient, uint32_t type);
double largest(const Numbers& x);

// A number is wrong where it is further off than rounding brings it.
void expect(const Numbers& is, const Numbers& wanted, double bound, double scale,
            const std::string& name);

}  // namespace fuzz
