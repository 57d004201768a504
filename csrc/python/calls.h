// The functions of the engine, on arrays and tensors as they lie.
#pragma once

#include <nanobind/nanobind.h>

namespace multihead::binding {

void add_calls(nanobind::module_& m);
void add_bfloat16(nanobind::module_& m);

}  // namespace multihead::binding
