// What Python hands over, as the engine takes it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "../api.h"

namespace multihead::binding {

const EngineTable& engine();

// Throws what the engine said, if it said anything.
void check(const char* why);

// A view of an array or tensor in CPU memory; none for None.
View view_of(nanobind::handle object);

// The engine writes through views of these: Python passes arrays of its own or of the caller's
// that it found writable.
inline View writable(nanobind::handle object) { return view_of(object); }

// From now on objects of this type, and of types derived from it, are read through the C functions
// that it offers in its capsule "dlpack_exchange_api". False if that is of another major version.
bool exchange_with(nanobind::handle type, nanobind::handle capsule);

// Rows of H heads: (H * D, in) as (H, D, in), or (H * D,) as (H, D).
View by_head(View v, int64_t heads);

// out_proj.weight (E, H * Dv) as (H, Dv, E).
View out_by_head(View v, int64_t heads);

// Probability, seed, counter.
Dropout dropout_of(nanobind::handle three);

// Offsets of queries and of keys, int64 (N + 1,) each, into a call.
void set_offsets(BatchShape& shape, nanobind::handle pair);

// Weights that a call returns, or their gradient; `call` learns that it is to make them.
WeightsView weights_of(nanobind::handle weights, bool average, int64_t heads, LayerCall* call);

// What backward needs of one forward.
class Cache {
 public:
  explicit Cache(size_t bytes) { check(engine().block_create(bytes, &block_, &data_)); }
  ~Cache() { engine().block_destroy(block_); }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;
  void* data() const { return data_; }

 private:
  void *block_ = nullptr, *data_ = nullptr;
};

// The functions for PyTorch's tensors.
void add_torch(nanobind::module_& m);

}  // namespace multihead::binding
