// What a layer's forward leaves for its backward, in a buffer whose size is known when JAX traces.
#pragma once

#include <cstdint>

#include "../engine/layer.h"
#include "../platform/compiler.h"
#include "operand.h"

namespace multihead::xla {

// What the size of a cache follows from; `multihead.jax.layer_calls` has the same fields.
struct LayerSizes {
  int64_t dtype, queries, keys, heads, key_heads, head_dim, bias_key, zero_row;
};

// Memory for forward to write and backward to read, in a buffer (N, bytes) whose first bytes tell
// of how many sequences it is. Throws std::invalid_argument where it is not of so many, or too
// small.
CacheMemory new_cache(const Operand& buffer, int64_t sequences);
CacheMemory kept_cache(const Operand& buffer, int64_t sequences);

}  // namespace multihead::xla

// Bytes of one sequence in caches of these sizes, with the kernels in use; -1 where there is none.
// As what forward leaves is arrays of sequences, N of these hold it, and the first bytes too.
extern "C" MULTIHEAD_EXPORT int64_t
multihead_layer_cache_bytes(const multihead::xla::LayerSizes* sizes);
