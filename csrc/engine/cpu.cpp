#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

#include "../platform/cpu.h"

namespace multihead {

std::vector<const KernelSet*> available_kernels() {
  std::vector<const KernelSet*> sets;
#if defined(MULTIHEAD_X86)
  if (platform::has_avx512()) sets.push_back(&avx512_kernels());
  if (platform::has_avx2()) sets.push_back(&avx2_kernels());
#elif defined(MULTIHEAD_ARM64)
  sets.push_back(&neon_kernels());
#endif
  sets.push_back(&baseline_kernels());
  return sets;
}

static const KernelSet* choose_kernels() {
  const std::vector<const KernelSet*> sets = available_kernels();
  const char* wanted = std::getenv("MULTIHEAD_ISA");
  if (!wanted || !*wanted) return sets.front();
  std::string names;
  for (const KernelSet* set : sets) {
    if (std::string(wanted) == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("MULTIHEAD_ISA: expected one of " + names +
                              " (what this CPU can run), got '" + wanted + "'");
}

const KernelSet& kernels() {
  static const KernelSet* const set = choose_kernels();
  return *set;
}

}  // namespace multihead
