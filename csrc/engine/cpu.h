// Which kernel set runs, and how many threads this process may use.
#pragma once

#include <string>
#include <vector>

#include "../kernels/table.h"

namespace multihead {

// Best first. Only those this CPU can run.
std::vector<const KernelSet*> available_kernels();

// The set in use: the one MULTIHEAD_ISA names, else the best. Throws std::invalid_argument on a
// name that is unknown or that this CPU cannot run.
const KernelSet& kernels();

template <class T>
const Kernels<T>& typed(const KernelSet& set);
template <>
inline const Kernels<float>& typed<float>(const KernelSet& set) {
  return *set.f32;
}
template <>
inline const Kernels<double>& typed<double>(const KernelSet& set) {
  return *set.f64;
}

// Of the affinity mask and the cgroup's quota, whichever is smaller; at least 1.
int usable_cpus();

// Rounding mode and denormal handling of the calling thread.
unsigned float_state();
void set_float_state(unsigned state);

}  // namespace multihead
