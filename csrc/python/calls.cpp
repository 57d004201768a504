#include "calls.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <utility>
#include <vector>

#include "arguments.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

// What a forward leaves for backward, in memory of the engine's. It is seen through the buffer
// protocol, never empty.
class Cache {
 public:
  Cache() = default;
  ~Cache() { engine().block_destroy(block_); }
  Cache(Cache&& other) noexcept { swap(other); }
  Cache& operator=(Cache&& other) noexcept { return swap(other); }

  void* make(size_t bytes) {  // without the GIL
    bytes_ = bytes + kAlign;
    const faces::Outcome outcome = engine().block_create(bytes_, &block_, &data_);
    if (outcome.status != faces::Status::Done) throw std::bad_alloc();
    return data_;
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Cache& swap(Cache& other) {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void *block_ = nullptr, *data_ = nullptr;
  size_t bytes_ = 0;
};

int cache_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  const Cache& cache = *nb::inst_ptr<Cache>(self);
  return PyBuffer_FillInfo(buffer, self, cache.data(), Py_ssize_t(cache.bytes()), 0, flags);
}

PyType_Slot cache_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(cache_buffer)},
                             {0, nullptr}};

// The memory of a cache that a forward left, or that a caller lends: what is too much of that is
// set to zeros where it is written.
CacheMemory memory_of(nb::handle object, bool written) {
  View v;
  if (nb::isinstance<Cache>(object)) {
    const Cache& cache = *nb::inst_ptr<Cache>(object);
    v.data = cache.data();
    v.dtype = DType::Float32;
    v.rank = 1;
    v.size[0] = int64_t(cache.bytes() / sizeof(float));
    v.stride[0] = 1;
  } else {
    v = written ? writable(object, "cache") : view_of(object);
  }
  return [v, written](size_t needed) {
    const size_t bytes = v.rank == 1 ? size_t(v.size[0] * item_bytes(v.dtype)) : 0;
    if (v.rank != 1 || v.dtype == DType::Bool || bytes < needed ||
        (v.size[0] > 1 && v.stride[0] != 1))
      throw std::invalid_argument("cache: expected what the forward call left");
    if (written) std::memset(static_cast<char*>(v.data) + needed, 0, bytes - needed);
    return v.data;
  };
}

nb::object layer_forward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object out,
                         nb::object weights, nb::object keep) {
  IntegerCopies copies;
  const faces::LayerArguments arguments = layer_arguments(options, tensors, offsets, copies);
  const faces::LayerResults results{writable(out, "out"), writable(weights, "weights")};
  Cache made;
  CacheMemory memory;
  if (keep.ptr() == Py_True)
    memory = [&](size_t bytes) { return made.make(bytes); };
  else if (keep.ptr() != Py_False)
    memory = memory_of(keep, true);
  run_engine([&] { return engine().layer_forward(arguments, results, memory); });
  return made.data() ? nb::cast(std::move(made)) : nb::none();
}

void layer_backward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object cache,
                    nb::object d_out, nb::object d_weights, nb::tuple gradients) {
  IntegerCopies copies;
  const faces::LayerArguments arguments = layer_arguments(options, tensors, offsets, copies);
  const faces::LayerResults results{view_of(d_out), view_of(d_weights)};
  const faces::LayerTensors to = layer_gradients(gradients);
  const CacheMemory kept = memory_of(cache, false);
  run_engine([&] { return engine().layer_backward(arguments, kept, results, to); });
}

void cached_forward(nb::tuple options, nb::tuple tensors, nb::tuple cache, nb::object out,
                    nb::object weights) {
  IntegerCopies copies;
  const faces::LayerArguments arguments = layer_arguments(options, tensors, nb::none(), copies);
  const faces::CachedKeys keys = cached_keys(cache, arguments, copies);
  const faces::LayerResults results{writable(out, "out"), writable(weights, "weights")};
  run_engine([&] { return engine().cached_forward(arguments, keys, results); });
}

void attention_forward(nb::tuple options, nb::tuple tensors, nb::object out, nb::object stats,
                       nb::object weights) {
  IntegerCopies copies;
  const faces::AttentionArguments arguments = attention_arguments(options, tensors, copies);
  const faces::AttentionResults results{writable(out, "out"), writable(stats, "stats"),
                                        writable(weights, "weights")};
  run_engine([&] { return engine().attention_forward(arguments, results); });
}

void attention_backward(nb::tuple options, nb::tuple tensors, nb::object stats, nb::object delta,
                        nb::object d_out, nb::tuple gradients) {
  IntegerCopies copies;
  const faces::AttentionArguments arguments = attention_arguments(options, tensors, copies);
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
  nb::class_<Cache>(m, "Cache", nb::type_slots(cache_slots));
  m.def("layer_forward", &layer_forward, "options"_a, "tensors"_a, "offsets"_a.none(), "out"_a,
        "weights"_a.none(), "keep"_a,
        nb::sig("def layer_forward(options: multihead.arguments.LayerOptions, "
                "tensors: multihead.arguments.LayerTensors, "
                "offsets: tuple[object, object] | None, out: object, weights: object | None, "
                "keep: object) -> Cache | None"));
  m.def("layer_backward", &layer_backward, "options"_a, "tensors"_a, "offsets"_a.none(), "cache"_a,
        "d_out"_a, "d_weights"_a.none(), "gradients"_a,
        nb::sig("def layer_backward(options: multihead.arguments.LayerOptions, "
                "tensors: multihead.arguments.LayerTensors, "
                "offsets: tuple[object, object] | None, cache: object, d_out: object, "
                "d_weights: object | None, gradients: multihead.arguments.LayerTensors) -> None"));
  m.def("cached_forward", &cached_forward, "options"_a, "tensors"_a, "cache"_a, "out"_a,
        "weights"_a.none(),
        nb::sig("def cached_forward(options: multihead.arguments.LayerOptions, "
                "tensors: multihead.arguments.LayerTensors, "
                "cache: multihead.arguments.CachedKeys, out: object, "
                "weights: object | None) -> None"));
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
