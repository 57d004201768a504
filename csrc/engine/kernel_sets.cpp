#include "kernel_sets.h"

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#include "../platform/cpu.h"

namespace multihead {
namespace {

// Read without a lock, which a forked child might find taken for good. Null: not taken.
std::atomic<const KernelSet*> g_added[8];
std::atomic<const KernelSet*> g_in_use{nullptr};

const KernelSet* named(const char* name, const std::string& who) {
  std::string names;
  for (const KernelSet* set : available_kernels()) {
    if (std::string(name) == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument(who + ": expected one of " + names +
                              " (what this CPU can run), got '" + name + "'");
}

}  // namespace

std::vector<const KernelSet*> available_kernels() {
  std::vector<const KernelSet*> sets;
#if defined(MULTIHEAD_X86)
  if (platform::has_amx()) sets.push_back(&amx_kernels());
  const bool pays = platform::multiplies_pairs_fast();
  if (platform::has_avx512_bf16() && pays) sets.push_back(&avx512_bf16_kernels());
  if (platform::has_avx512()) sets.push_back(&avx512_kernels());
  if (platform::has_avx512_bf16() && !pays) sets.push_back(&avx512_bf16_kernels());
  if (platform::has_avx2()) sets.push_back(&avx2_kernels());
#elif defined(MULTIHEAD_ARM64)
  if (platform::has_neon_bf16()) sets.push_back(&neon_bf16_kernels());
  sets.push_back(&neon_kernels());
#endif
  sets.push_back(&baseline_kernels());
  for (const std::atomic<const KernelSet*>& added : g_added)
    if (const KernelSet* set = added.load()) sets.push_back(set);
  return sets;
}

void add_kernels(const KernelSet* set) {
  for (std::atomic<const KernelSet*>& added : g_added) {
    const KernelSet* none = nullptr;
    if (added.compare_exchange_strong(none, set)) return;
  }
  throw std::invalid_argument("set: expected at most " + std::to_string(std::size(g_added)));
}

const KernelSet& kernels_in_use() {
  if (const KernelSet* set = g_in_use.load()) return *set;
  const char* wanted = std::getenv("MULTIHEAD_ISA");
  g_in_use = wanted && *wanted ? named(wanted, "MULTIHEAD_ISA") : available_kernels().front();
  return *g_in_use.load();
}

void use_kernels(const char* name) { g_in_use = named(name, "isa"); }

}  // namespace multihead
