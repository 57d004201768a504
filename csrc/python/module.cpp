// Face: NumPy arrays to engine calls. Shapes and dtypes are validated in Python; here every array
// becomes a view, and the GIL is released around the engine.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "torch_threads.h"
#include "views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

Parameters parameters_of(const nb::tuple& p, int64_t heads) {
  if (p.size() != 10) throw nb::value_error("params: expected 10 entries");
  Parameters r;
  r.query = {by_head(view_of(p[0]), heads), by_head(view_of(p[3]), heads)};
  r.key = {by_head(view_of(p[1]), heads), by_head(view_of(p[4]), heads)};
  r.value = {by_head(view_of(p[2]), heads), by_head(view_of(p[5]), heads)};
  r.bias_k = by_head(view_of(p[6]), heads);
  r.bias_v = by_head(view_of(p[7]), heads);
  r.out = {out_by_head(view_of(p[8]), heads), view_of(p[9])};
  return r;
}

// A layer call, and the arrays that its views look into.
LayerCall layer_call(int64_t heads, bool add_zero_attn, const nb::tuple& params,
                     const nb::tuple& inputs, nb::handle offsets, const nb::tuple& masks,
                     bool is_causal, const nb::tuple& dropout) {
  LayerCall call;
  call.parameters = parameters_of(params, heads);
  call.dtype = call.parameters.query.weight.dtype;
  call.zero_row = add_zero_attn;
  call.query = view_of(inputs[0]);
  call.key = view_of(inputs[1]);
  call.value = view_of(inputs[2]);
  BatchShape& s = call.shape;
  s.key_padding = view_of(masks[0]);
  call.attn_mask = view_of(masks[1]);
  if (offsets.is_none()) {
    s.batch = call.query.size[0];
    s.queries = call.query.size[1];
    s.keys = call.key.size[1];
  } else {
    set_offsets(s, offsets);
  }
  call.causal = is_causal;
  call.dropout = dropout_of(dropout);
  return call;
}

nb::object layer_forward(int64_t num_heads, bool add_zero_attn, nb::tuple params, nb::tuple inputs,
                         nb::object offsets, nb::tuple masks, bool is_causal, nb::tuple dropout,
                         nb::object out, nb::object weights, bool average, bool keep) {
  LayerCall call =
      layer_call(num_heads, add_zero_attn, params, inputs, offsets, masks, is_causal, dropout);
  const WeightsView w = weights_of(weights, average, num_heads, &call);
  const View o = writable(out);
  std::unique_ptr<Cache> cache;
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    size_t bytes = 0;
    if (keep) {
      check(engine().cache_bytes(call, &bytes));
      cache = std::make_unique<Cache>(bytes + 1);
    }
    why = engine().layer_forward(call, o, w, cache ? cache->data() : nullptr);
  }
  check(why);
  return cache ? nb::cast(cache.release(), nb::rv_policy::take_ownership) : nb::none();
}

void layer_backward(int64_t num_heads, bool add_zero_attn, nb::tuple params, nb::tuple inputs,
                    nb::object offsets, nb::tuple masks, bool is_causal, nb::tuple dropout,
                    const Cache& cache, nb::object d_out, nb::object d_weights, bool average,
                    nb::tuple d_inputs, nb::tuple d_params, nb::tuple d_masks) {
  LayerCall call =
      layer_call(num_heads, add_zero_attn, params, inputs, offsets, masks, is_causal, dropout);
  const WeightsView w = weights_of(d_weights, average, num_heads, &call);
  const View d = view_of(d_out);
  LayerGradients g;
  g.query = writable(d_inputs[0]);
  g.key = writable(d_inputs[1]);
  g.value = writable(d_inputs[2]);
  g.parameters = parameters_of(d_params, num_heads);
  g.key_padding = writable(d_masks[0]);
  g.attn_mask = writable(d_masks[1]);
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().layer_backward(call, cache.data(), d, w, g);
  }
  check(why);
}

AttentionCall attention_call(nb::handle q, nb::handle k, nb::handle v, nb::handle attn_mask,
                             bool true_hides, bool is_causal, double scale,
                             const nb::tuple& dropout, const nb::tuple& offsets) {
  AttentionCall call;
  call.q = view_of(q);
  call.k = view_of(k);
  call.v = view_of(v);
  call.dtype = call.q.dtype;
  call.attn_mask = view_of(attn_mask);
  call.true_hides = true_hides;
  call.causal = is_causal;
  call.scale = scale;
  call.dropout = dropout_of(dropout);
  call.offsets = {nb::cast<int64_t>(offsets[0]), nb::cast<int64_t>(offsets[1]),
                  nb::cast<int64_t>(offsets[2]), nb::cast<int64_t>(offsets[3])};
  return call;
}

void attention_forward(nb::object q, nb::object k, nb::object v, nb::object attn_mask,
                       bool true_hides, bool is_causal, double scale, nb::tuple dropout,
                       nb::tuple offsets, nb::object out, nb::object stats, nb::object weights) {
  const AttentionCall call =
      attention_call(q, k, v, attn_mask, true_hides, is_causal, scale, dropout, offsets);
  const View o = writable(out), st = writable(stats);
  const WeightsView w = weights_of(weights, false, call.q.size[1], nullptr);
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().attention_forward(call, o, st, w);
  }
  check(why);
}

void attention_backward(nb::object q, nb::object k, nb::object v, nb::object attn_mask,
                        bool true_hides, bool is_causal, double scale, nb::tuple dropout,
                        nb::tuple offsets, nb::object stats, nb::object delta, nb::object d_out,
                        nb::object d_q, nb::object d_k, nb::object d_v, nb::object d_attn_mask) {
  const AttentionCall call =
      attention_call(q, k, v, attn_mask, true_hides, is_causal, scale, dropout, offsets);
  const View st = view_of(stats), de = view_of(delta), d = view_of(d_out);
  const AttentionGradients g{writable(d_q), writable(d_k), writable(d_v), writable(d_attn_mask)};
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().attention_backward(call, st, de, d, g);
  }
  check(why);
}

void delta(nb::object d_out, nb::object out, nb::object result) {
  const View a = view_of(d_out), b = view_of(out), r = writable(result);
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().row_dot(a, b, r);
  }
  check(why);
}

// bfloat16 travels as its bits: NumPy has no such dtype.

// A view of the same memory, read-only where the producer says so.
template <class Bits, class From>
nb::object bits_of(const From& array) {
  if (array.dtype().code != uint8_t(nb::dlpack::dtype_code::Bfloat) || array.dtype().bits != 16)
    throw nb::type_error("bfloat16_bits: expected an array of bfloat16");
  std::vector<size_t> shape;
  std::vector<int64_t> strides;
  for (size_t i = 0; i < array.ndim(); ++i) {
    shape.push_back(array.shape(i));
    strides.push_back(array.stride(i));
  }
  nb::object owner = nb::cast(array, nb::rv_policy::reference);
  return nb::cast(nb::ndarray<nb::numpy, Bits>(static_cast<Bits*>(array.data()), shape.size(),
                                               shape.data(), owner, strides.data()));
}

nb::object bfloat16_bits(nb::handle array) {
  nb::ndarray<nb::device::cpu> writable;
  if (nb::try_cast(array, writable)) return bits_of<uint16_t>(writable);
  return bits_of<const uint16_t>(nb::cast<Array>(array));
}

nb::object dlpack_bfloat16(nb::ndarray<uint16_t, nb::device::cpu> bits) {
  std::vector<size_t> shape;
  std::vector<int64_t> strides;
  for (size_t i = 0; i < bits.ndim(); ++i) {
    shape.push_back(bits.shape(i));
    strides.push_back(bits.stride(i));
  }
  nb::dlpack::dtype type{uint8_t(nb::dlpack::dtype_code::Bfloat), 16, 1};
  nb::object owner = nb::cast(bits, nb::rv_policy::reference);
  return nb::cast(nb::ndarray<nb::array_api>(bits.data(), shape.size(), shape.data(), owner,
                                             strides.data(), type));
}

std::string isa() {
  const char* name = nullptr;
  check(engine().isa(&name));
  return name;
}

std::vector<std::string> available_isas() {
  const char* names[8];
  const int n = engine().available(names, 8);
  return std::vector<std::string>(names, names + std::min(n, 8));
}

double fma_peak(double seconds, int threads, bool float64) {
  double rate = 0;
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().fma_peak(seconds, threads, float64, &rate);
  }
  check(why);
  return rate;
}

double region_seconds(int iterations) {
  double seconds = 0;
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().region_seconds(iterations, &seconds);
  }
  check(why);
  return seconds;
}

}  // namespace
}  // namespace multihead::binding

NB_MODULE(_native, m) {
  using namespace multihead;
  using namespace multihead::binding;
  m.doc() = "The native engine of multihead: no validation, see the Python modules.";
  if (engine().version != kTableVersion)
    throw nb::import_error("libmultihead and _native are of different versions");
  const char* name = nullptr;
  if (const char* why = engine().isa(&name)) throw nb::import_error(why);
  if (const char* why = engine().set_thread_source(&kTorchThreads)) throw nb::import_error(why);

  nb::set_leak_warnings(false);  // a traceback at exit may hold a cache
  nb::class_<Cache>(m, "Cache", "What backward needs of one forward. Opaque.");
  m.def("layer_forward", &binding::layer_forward, "num_heads"_a, "add_zero_attn"_a, "params"_a,
        "inputs"_a, "offsets"_a.none(), "masks"_a, "is_causal"_a, "dropout"_a, "out"_a,
        "weights"_a.none(), "average"_a, "keep"_a,
        nb::sig("def layer_forward(num_heads: int, add_zero_attn: bool, "
                "params: tuple[object, ...], inputs: tuple[object, ...], offsets: object | None, "
                "masks: tuple[object, ...], is_causal: bool, dropout: tuple[float, int, int], "
                "out: object, weights: object | None, average: bool, keep: bool) -> Cache | None"));
  m.def("layer_backward", &binding::layer_backward, "num_heads"_a, "add_zero_attn"_a, "params"_a,
        "inputs"_a, "offsets"_a.none(), "masks"_a, "is_causal"_a, "dropout"_a, "cache"_a, "d_out"_a,
        "d_weights"_a.none(), "average"_a, "d_inputs"_a, "d_params"_a, "d_masks"_a,
        nb::sig("def layer_backward(num_heads: int, add_zero_attn: bool, "
                "params: tuple[object, ...], inputs: tuple[object, ...], offsets: object | None, "
                "masks: tuple[object, ...], is_causal: bool, dropout: tuple[float, int, int], "
                "cache: Cache, d_out: object, d_weights: object | None, average: bool, "
                "d_inputs: tuple[object, ...], d_params: tuple[object, ...], "
                "d_masks: tuple[object, ...]) -> None"));
  m.def(
      "attention_forward", &binding::attention_forward, "q"_a, "k"_a, "v"_a, "attn_mask"_a.none(),
      "true_hides"_a, "is_causal"_a, "scale"_a, "dropout"_a, "offsets"_a, "out"_a, "stats"_a.none(),
      "weights"_a.none(),
      nb::sig("def attention_forward(q: object, "
              "k: object, v: object, attn_mask: object | None, true_hides: bool, is_causal: bool, "
              "scale: float, dropout: tuple[float, int, int], offsets: tuple[int, int, int, int], "
              "out: object, stats: object | None, weights: object | None) -> None"));
  m.def(
      "attention_backward", &binding::attention_backward, "q"_a, "k"_a, "v"_a, "attn_mask"_a.none(),
      "true_hides"_a, "is_causal"_a, "scale"_a, "dropout"_a, "offsets"_a, "stats"_a, "delta"_a,
      "d_out"_a, "d_q"_a, "d_k"_a, "d_v"_a, "d_attn_mask"_a.none(),
      nb::sig("def attention_backward(q: object, k: object, v: object, "
              "attn_mask: object | None, true_hides: bool, is_causal: bool, scale: float, "
              "dropout: tuple[float, int, int], offsets: tuple[int, int, int, int], stats: object, "
              "delta: object, d_out: object, d_q: object, d_k: object, d_v: object, "
              "d_attn_mask: object | None) -> None"));
  m.def("delta", &binding::delta, "d_out"_a, "out"_a, "result"_a,
        nb::sig("def delta(d_out: object, out: object, result: object) -> None"));
  m.def("bfloat16_bits", &binding::bfloat16_bits, "array"_a,
        nb::sig("def bfloat16_bits(array: object) -> numpy.typing.NDArray[numpy.uint16]"));
  m.def("dlpack_bfloat16", &binding::dlpack_bfloat16, "bits"_a,
        nb::sig("def dlpack_bfloat16(bits: numpy.typing.NDArray[numpy.uint16]) -> object"));
  add_torch(m);
  m.def("set_num_threads", [](int n) { engine().set_num_threads(n); }, "threads"_a);
  m.def("get_num_threads", [] { return engine().num_threads(); });
  m.def("isa", &binding::isa);
  m.def("available_isas", &binding::available_isas);
  m.def("fma_peak", &binding::fma_peak, "seconds"_a, "threads"_a, "float64"_a);
  m.def("region_seconds", &binding::region_seconds, "iterations"_a);
}
