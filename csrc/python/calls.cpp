#include "calls.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <vector>

#include "arguments.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

// Memory of the engine's.
class Block {
 public:
  explicit Block(size_t bytes) { check(engine().block_create(bytes, &block_, &data_)); }
  ~Block() { engine().block_destroy(block_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const { return data_; }

 private:
  void *block_ = nullptr, *data_ = nullptr;
};

// A cache in memory of the engine's, as an array of the call's dtype that keeps it.
class NewCache {
 public:
  NewCache(size_t bytes, DType type)
      : bytes_(bytes), type_(type), block_(std::make_unique<Block>(bytes + 1)) {}
  void* data() const { return block_->data(); }
  nb::object release() {
    return dispatch(type_, [&]<class E>() {
      void* const at = data();
      nb::capsule owner(block_.get(),
                        [](void* block) noexcept { delete static_cast<Block*>(block); });
      (void)block_.release();
      return nb::cast(nb::ndarray<nb::numpy, E>(at, {bytes_ / sizeof(E)}, owner));
    });
  }

 private:
  size_t bytes_;
  DType type_;
  std::unique_ptr<Block> block_;
};

size_t cache_bytes(const faces::LayerArguments& arguments) {
  size_t bytes = 0;
  check(engine().cache_bytes(arguments, &bytes));
  return bytes;
}

// Memory that the caller lends for a cache; what is too much of it is set to zeros where written.
void* lent(nb::handle array, size_t needed, bool written) {
  const View v = written ? writable(array, "cache") : view_of(array);
  const size_t bytes = v.rank == 1 ? size_t(v.size[0] * item_bytes(v.dtype)) : 0;
  if (v.rank != 1 || v.dtype == DType::Bool || bytes < needed ||
      (v.size[0] > 1 && v.stride[0] != 1))
    throw nb::value_error("cache: expected what the forward call left");
  if (written) std::memset(static_cast<char*>(v.data) + needed, 0, bytes - needed);
  return v.data;
}

nb::object layer_forward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object out,
                         nb::object weights, nb::object keep) {
  const faces::LayerArguments arguments = layer_arguments(options, tensors, offsets);
  const faces::LayerResults results{writable(out, "out"), writable(weights, "weights")};
  std::unique_ptr<NewCache> made;
  void* cache = nullptr;
  if (keep.ptr() == Py_True) {
    made = std::make_unique<NewCache>(cache_bytes(arguments), arguments.tensors.query.dtype);
    cache = made->data();
  } else if (keep.ptr() != Py_False) {
    cache = lent(keep, cache_bytes(arguments), true);
  }
  run_engine([&] { return engine().layer_forward(arguments, results, cache); });
  return made ? made->release() : nb::none();
}

void layer_backward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object cache,
                    nb::object d_out, nb::object d_weights, nb::tuple gradients) {
  const faces::LayerArguments arguments = layer_arguments(options, tensors, offsets);
  const faces::LayerResults results{view_of(d_out), view_of(d_weights)};
  const faces::LayerTensors to = layer_gradients(gradients);
  const void* kept = lent(cache, cache_bytes(arguments), false);
  run_engine([&] { return engine().layer_backward(arguments, kept, results, to); });
}

void attention_forward(nb::tuple options, nb::tuple tensors, nb::object out, nb::object stats,
                       nb::object weights) {
  const faces::AttentionArguments arguments = attention_arguments(options, tensors);
  const faces::AttentionResults results{writable(out, "out"), writable(stats, "stats"),
                                        writable(weights, "weights")};
  run_engine([&] { return engine().attention_forward(arguments, results); });
}

void attention_backward(nb::tuple options, nb::tuple tensors, nb::object stats, nb::object delta,
                        nb::object d_out, nb::tuple gradients) {
  const faces::AttentionArguments arguments = attention_arguments(options, tensors);
  const faces::AttentionResults results{view_of(d_out), view_of(stats), View{}};
  const faces::AttentionTensors to = attention_gradients(gradients);
  const View of_rows = view_of(delta);
  run_engine([&] { return engine().attention_backward(arguments, results, of_rows, to); });
}

void delta(nb::object d_out, nb::object out, nb::object result) {
  const View a = view_of(d_out), b = view_of(out), r = writable(result, "result");
  run_engine([&] { return engine().row_dot(a, b, r); });
}

void merge_attention(nb::tuple outs, nb::tuple lses, nb::object out, nb::object lse) {
  std::vector<View> of_outs, of_lses;
  for (nb::handle x : outs) of_outs.push_back(view_of(x));
  for (nb::handle x : lses) of_lses.push_back(view_of(x));
  if (of_outs.size() != of_lses.size())
    throw nb::value_error("lses: expected one for each of outs");
  const MergeCall call{of_outs.data(), of_lses.data(), int64_t(of_outs.size()),
                       writable(out, "out"), writable(lse, "lse")};
  run_engine([&] { return engine().merge_attention(call); });
}

}  // namespace

void add_calls(nb::module_& m) {
  m.def("layer_forward", &layer_forward, "options"_a, "tensors"_a, "offsets"_a.none(), "out"_a,
        "weights"_a.none(), "keep"_a,
        nb::sig("def layer_forward(options: multihead.arguments.LayerOptions, "
                "tensors: multihead.arguments.LayerTensors, "
                "offsets: tuple[object, object] | None, out: object, weights: object | None, "
                "keep: object) -> numpy.typing.NDArray[typing.Any] | None"));
  m.def("layer_backward", &layer_backward, "options"_a, "tensors"_a, "offsets"_a.none(), "cache"_a,
        "d_out"_a, "d_weights"_a.none(), "gradients"_a,
        nb::sig("def layer_backward(options: multihead.arguments.LayerOptions, "
                "tensors: multihead.arguments.LayerTensors, "
                "offsets: tuple[object, object] | None, cache: object, d_out: object, "
                "d_weights: object | None, gradients: multihead.arguments.LayerTensors) -> None"));
  m.def("attention_forward", &attention_forward, "options"_a, "tensors"_a, "out"_a,
        "stats"_a.none(), "weights"_a.none(),
        nb::sig("def attention_forward(options: multihead.arguments.AttentionOptions, "
                "tensors: multihead.arguments.AttentionTensors, out: object, "
                "stats: object | None, weights: object | None) -> None"));
  m.def("attention_backward", &attention_backward, "options"_a, "tensors"_a, "stats"_a, "delta"_a,
        "d_out"_a, "gradients"_a,
        nb::sig("def attention_backward(options: multihead.arguments.AttentionOptions, "
                "tensors: multihead.arguments.AttentionTensors, stats: object, delta: object, "
                "d_out: object, gradients: multihead.arguments.AttentionTensors) -> None"));
  m.def("delta", &delta, "d_out"_a, "out"_a, "result"_a,
        nb::sig("def delta(d_out: object, out: object, result: object) -> None"));
  m.def("merge_attention", &merge_attention, "outs"_a, "lses"_a, "out"_a, "lse"_a,
        nb::sig("def merge_attention(outs: tuple[object, ...], lses: tuple[object, ...], "
                "out: object, lse: object) -> None"));
  m.def("exchange_with", &exchange_with, "type"_a, "capsule"_a,
        nb::sig("def exchange_with(type: type, capsule: object) -> bool"));
}

}  // namespace multihead::binding
