// XLA's buffers as views of the engine's. Every buffer is dense and row-major; axes that vmap added
// stand before those of one call, of size 1 where an operand was not mapped.
#pragma once

#include <vector>

#include "../engine/view.h"
#include "ffi.h"

namespace multihead::xla {

using Sizes = ffi::Span<const int64_t>;

struct Operand {
  View view;  // of one call; integers have no dtype that it could tell
  ffi::DataType type{};
  Sizes lead;            // sizes of vmap's axes
  int64_t elements = 0;  // of one call
  int batch_axis = -1;   // where sequences are in `view`; -1: nowhere

  explicit operator bool() const { return bool(view); }
  bool mapped(size_t axis) const { return lead[axis] != 1; }
  // How many sequences it tells apart.
  int64_t batch() const { return batch_axis < 0 ? 1 : view.size[batch_axis]; }
  // Elements to the next entry of one of vmap's axes.
  int64_t lead_stride(size_t axis) const;
  // The view of one entry.
  View at(int64_t element) const;
  void swap_axes(int a, int b);  // of one call
};

// A handler's buffers, one after another. All throw std::invalid_argument.
template <class Buffers>
class Reader {
 public:
  explicit Reader(const Buffers& buffers) : buffers_(buffers) {}

  // The next one, of so many axes in one call.
  Operand take(const char* name, int rank, int batch_axis);
  // The same, (..., tokens, heads, features), as the engine has it: (..., heads, tokens, features).
  Operand take_tokens(const char* name, int batch_axis);
  size_t taken() const { return next_; }

 private:
  const Buffers& buffers_;
  size_t next_ = 0;
};

using Arguments = Reader<ffi::RemainingArgs>;
using Results = Reader<ffi::RemainingRets>;

// Integers of sequences, (1) or (N), as (N).
std::vector<int64_t> integers_of(const Operand& operand, int64_t element, int64_t count);

}  // namespace multihead::xla
