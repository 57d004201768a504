// Which kernel sets there are, and which runs where a call names none.
#pragma once

#include <string>
#include <vector>

#include "../kernels/table.h"

namespace multihead {

// Best first. Only those this CPU can run.
std::vector<const KernelSet*> available_kernels();

// The set that a call runs on which names none: the one MULTIHEAD_ISA names, else the best. Throws
// std::invalid_argument on a name that is unknown or that this CPU cannot run.
const KernelSet& kernels_in_use();
// From now on another one, by name; throws likewise.
void use_kernels(const char* name);

// Makes a set known that is not the library's own: for tests of what a set may decide.
void add_kernels(const KernelSet* set);

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
