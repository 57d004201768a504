// Face: PyTorch's tensors to engine calls, as they lie: PyTorch's axes, packed parameters and masks
// become views here, so that a call costs Python little.
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <utility>

#include "views.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

// multihead.torch.options.Options.
struct Options {
  int64_t heads;
  bool zero_row, causal, weights, average, tokens_first;
  Dropout dropout;

  explicit Options(const nb::tuple& o)
      : heads(nb::cast<int64_t>(o[0])),
        zero_row(nb::cast<bool>(o[1])),
        causal(nb::cast<bool>(o[2])),
        weights(!o[3].is_none()),
        average(weights && nb::cast<bool>(o[3])),
        tokens_first(nb::cast<bool>(o[4])),
        dropout{nb::cast<double>(o[5]), o[6].is_none() ? 0 : nb::cast<uint64_t>(o[6]), 0} {}
};

// The tensors of a call, and the gradients of a call, in one order.
enum { Query, Key, Value, Padding, Mask, InWeight, QWeight, KWeight, VWeight, InBias };
enum { BiasK = InBias + 1, BiasV, OutWeight, OutBias, Tensors };

// (tokens, N, features) as (N, tokens, features).
View batch_first(View v, const Options& o) {
  if (v.rank == 3 && o.tokens_first) {
    std::swap(v.size[0], v.size[1]);
    std::swap(v.stride[0], v.stride[1]);
  }
  return v;
}

// The i-th of three parts of the first axis.
View third(View v, int i) {
  if (!v) return v;
  v.size[0] /= 3;
  const size_t bytes = v.dtype == DType::Float64 ? sizeof(double) : sizeof(float);
  v.data = static_cast<char*>(v.data) + size_t(i * v.size[0] * v.stride[0]) * bytes;
  return v;
}

View flat(View v) {  // (1, 1, E) as (E)
  if (!v) return v;
  v.size[0] = v.size[v.rank - 1];
  v.stride[0] = v.stride[v.rank - 1];
  v.rank = 1;
  return v;
}

// A mask (L, S), (N * H, L, S) or (1|N, 1|H, 1|L, 1|S) as (N, H, L, S), what is shared with stride
// 0; its `own` shape keeps axes of 1.
View four_axes(const View& v, const LayerCall& call, int64_t heads, bool own) {
  if (!v) return v;
  const BatchShape& s = call.shape;
  const int64_t size[4] = {s.batch, heads, s.queries, s.keys};
  View r = v;
  r.rank = 4;
  for (int i = 0; i < 4; ++i) {
    const int from = i - 4 + v.rank;  // the axis of v
    r.size[i] = from >= 0 ? v.size[from] : 1;
    r.stride[i] = from >= 0 ? v.stride[from] : 0;
  }
  if (v.rank == 3) {
    r.size[0] = s.batch, r.stride[0] = heads * v.stride[0];
    r.size[1] = heads, r.stride[1] = v.stride[0];
  }
  for (int i = 0; i < 4 && !own; ++i)
    if (r.size[i] == 1) r.size[i] = size[i], r.stride[i] = 0;
  return r;
}

Parameters parameters_of(const View* v, int64_t heads) {
  const bool packed = bool(v[InWeight]);
  const auto projection = [&](int i) {
    const View weight = packed ? third(v[InWeight], i) : v[QWeight + i];
    return HeadWeights{by_head(weight, heads), by_head(third(v[InBias], i), heads)};
  };
  Parameters p;
  p.query = projection(0);
  p.key = projection(1);
  p.value = projection(2);
  p.bias_k = by_head(flat(v[BiasK]), heads);
  p.bias_v = by_head(flat(v[BiasV]), heads);
  p.out = {out_by_head(v[OutWeight], heads), v[OutBias]};
  return p;
}

// Without a value it is the key, without a key both are the query; `like` says which there are.
void views_of(const nb::tuple& tensors, const nb::tuple& like, View (&views)[Tensors]) {
  if (tensors.size() != size_t(Tensors)) throw nb::value_error("tensors: expected 14 entries");
  for (int i = 0; i < Tensors; ++i) views[i] = view_of(tensors[size_t(i)]);
  if (like[size_t(Key)].is_none()) views[Key] = views[Query];
  if (like[size_t(Value)].is_none()) views[Value] = views[Key];
}

LayerCall call_of(const Options& o, const nb::tuple& tensors, nb::handle offsets) {
  View v[Tensors];
  views_of(tensors, tensors, v);
  LayerCall call;
  call.parameters = parameters_of(v, o.heads);
  call.dtype = call.parameters.query.weight.dtype;
  call.zero_row = o.zero_row;
  call.query = batch_first(v[Query], o);
  call.key = batch_first(v[Key], o);
  call.value = batch_first(v[Value], o);
  BatchShape& s = call.shape;
  if (offsets.is_none()) {
    s.batch = call.query.size[0];
    s.queries = call.query.size[1];
    s.keys = call.key.size[1];
  } else {
    set_offsets(s, offsets);
  }
  s.key_padding = v[Padding];
  call.attn_mask = four_axes(v[Mask], call, o.heads, false);
  call.causal = o.causal;
  call.dropout = o.dropout;
  return call;
}

// Memory that a tensor lends for a cache, and its bytes.
std::pair<char*, size_t> lent(nb::handle tensor, size_t needed) {
  const View v = view_of(tensor);
  const size_t item = v.dtype == DType::Float64 ? sizeof(double) : sizeof(float);
  const size_t bytes = size_t(v.size[0]) * item;
  if (v.rank != 1 || v.dtype == DType::Bool || bytes < needed)
    throw nb::value_error("cache: too small");
  return {static_cast<char*>(v.data), bytes};
}

nb::object tensor_forward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object out,
                          nb::object weights, nb::object keep) {
  const Options o(options);
  LayerCall call = call_of(o, tensors, offsets);
  const WeightsView w = weights_of(weights, o.average, o.heads, &call);
  const View y = batch_first(writable(out), o);
  size_t bytes = 0;
  std::unique_ptr<Cache> cache;
  void* memory = nullptr;
  const bool own = keep.ptr() == Py_True;
  if (keep.ptr() != Py_False) check(engine().cache_bytes(call, &bytes));
  if (own) {
    cache = std::make_unique<Cache>(bytes + 1);
    memory = cache->data();
  } else if (keep.ptr() != Py_False) {
    const auto [data, size] = lent(keep, bytes);
    std::memset(data + bytes, 0, size - bytes);
    memory = data;
  }
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().layer_forward(call, y, w, memory);
  }
  check(why);
  if (!own) return nb::none();
  const nb::object owner = nb::cast(cache.release(), nb::rv_policy::take_ownership);
  if (call.dtype == DType::Float64)
    return nb::cast(nb::ndarray<nb::numpy, double>(memory, {bytes / sizeof(double)}, owner));
  return nb::cast(nb::ndarray<nb::numpy, float>(memory, {bytes / sizeof(float)}, owner));
}

void tensor_backward(nb::tuple options, nb::tuple tensors, nb::object offsets, nb::object cache,
                     nb::object d_out, nb::object d_weights, nb::tuple gradients) {
  const Options o(options);
  LayerCall call = call_of(o, tensors, offsets);
  const WeightsView w = weights_of(d_weights, o.average, o.heads, &call);
  const View d_y = batch_first(view_of(d_out), o);
  View d[Tensors];
  views_of(gradients, tensors, d);
  LayerGradients g;
  g.query = batch_first(d[Query], o);
  g.key = batch_first(d[Key], o);
  g.value = batch_first(d[Value], o);
  g.parameters = parameters_of(d, o.heads);
  g.key_padding = d[Padding];
  g.attn_mask = four_axes(d[Mask], call, o.heads, true);
  size_t bytes = 0;
  check(engine().cache_bytes(call, &bytes));
  const void* memory = lent(cache, bytes).first;
  const char* why = nullptr;
  {
    nb::gil_scoped_release release;
    why = engine().layer_backward(call, memory, d_y, w, g);
  }
  check(why);
}

}  // namespace

void add_torch(nb::module_& m) {
  m.def("exchange_with", &exchange_with, "type"_a, "capsule"_a,
        nb::sig("def exchange_with(type: type, capsule: object) -> bool"));
  m.def("tensor_forward", &tensor_forward, "options"_a, "tensors"_a, "offsets"_a.none(), "out"_a,
        "weights"_a.none(), "keep"_a,
        nb::sig("def tensor_forward(options: tuple[object, ...], tensors: tuple[object, ...], "
                "offsets: tuple[object, object] | None, out: object, weights: object | None, "
                "keep: object) -> object"));
  m.def("tensor_backward", &tensor_backward, "options"_a, "tensors"_a, "offsets"_a.none(),
        "cache"_a, "d_out"_a, "d_weights"_a.none(), "gradients"_a,
        nb::sig("def tensor_backward(options: tuple[object, ...], tensors: tuple[object, ...], "
                "offsets: tuple[object, object] | None, cache: object, d_out: object, "
                "d_weights: object | None, gradients: tuple[object, ...]) -> None"));
}

}  // namespace multihead::binding
