#include "judge.h"

#include <multihead/bnns.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tolerances.h"

namespace fuzz {

void found(const std::string& what) {
  std::fprintf(stderr, "FOUND: %s\n%s\nlast error: %s\n", what.c_str(), g_text.c_str(),
               multihead_last_error());
  std::abort();
}

double tolerance(bool gradient, uint32_t type) {
  const double* of = gradient ? kGradient : kForward;
  return type == BNNSDataTypeFloat32 ? of[0] : type == BNNSDataTypeFloat16 ? of[1] : of[2];
}

double largest(const Numbers& x) {
  double most = 0;
  for (double a : x) most = std::max(most, std::fabs(a));
  return most;
}

// What is less than this share of numbers as they are drawn float16 may not have.
constexpr double kLeast = 1e-3;

void expect(const Numbers& is, const Numbers& wanted, double bound, double scale,
            const std::string& name) {
  if (is.size() != wanted.size()) found(name + ": another size");
  const double most = bound * std::max({largest(wanted), scale, kLeast});
  for (size_t i = 0; i < is.size(); ++i)
    if (!(std::fabs(is[i] - wanted[i]) <= most))
      found(name + ": " + std::to_string(is[i]) + " at " + std::to_string(i) + ", not " +
            std::to_string(wanted[i]) + ", largest " + std::to_string(largest(wanted)));
}

}  // namespace fuzz
