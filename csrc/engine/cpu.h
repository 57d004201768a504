// Which kernel set runs.
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

}  // namespace multihead
