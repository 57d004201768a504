// Which kernel sets there are, and which runs where a call names none.
#pragma once

#include <string>
#include <vector>

#include "../kernels/table.h"
#include "view.h"

namespace multihead {

// Best first. Only those this CPU can run.
std::vector<const KernelSet*> available_kernels();

// The set that a call runs on which names none: the one MULTIHEAD_ISA names, else the best. Throws
// std::invalid_argument on a name that is unknown or that this CPU cannot run.
const KernelSet& kernels_in_use();
// From now on another one, by name; throws likewise.
void use_kernels(const char* name);

// The set that a caller names, or the one in use.
inline const KernelSet& kernels_or_in_use(const KernelSet* named) {
  return named ? *named : kernels_in_use();
}

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

template <>
inline const Kernels<BFloat16>& typed<BFloat16>(const KernelSet& set) {
  return *set.bf16;
}

// f<E>() for the element type in which a set computes arrays of a dtype.
template <class F>
decltype(auto) dispatch(const KernelSet& set, DType type, F f) {
  if (type == DType::BFloat16 && set.bf16) return f.template operator()<BFloat16>();
  return dispatch(type, f);
}

}  // namespace multihead
