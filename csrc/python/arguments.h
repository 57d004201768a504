// The named tuples of multihead.arguments, read by the names of their fields: their order is held
// against the structures' once, when the module is loaded.
#pragma once

#include "views.h"

namespace multihead::binding {

// Throws an ImportError where the tuples' fields are not those that are read here.
void check_fields(nanobind::handle arguments_module);

// The arguments refer to the copies.
faces::LayerArguments layer_arguments(nanobind::handle options, nanobind::handle tensors,
                                      nanobind::handle offsets, IntegerCopies& copies);
faces::CachedKeys cached_keys(nanobind::handle tuple, const faces::LayerArguments& arguments,
                              IntegerCopies& copies);
faces::AttentionArguments attention_arguments(nanobind::handle options, nanobind::handle tensors,
                                              IntegerCopies& copies);

// Gradients, which the engine writes.
faces::LayerTensors layer_gradients(nanobind::handle tensors);
faces::AttentionTensors attention_gradients(nanobind::handle tensors);

}  // namespace multihead::binding
