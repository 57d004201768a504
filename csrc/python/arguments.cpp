#include "arguments.h"

#include <nanobind/stl/string.h>

#include <cstring>
#include <iterator>
#include <string>

namespace nb = nanobind;

namespace multihead::binding {
namespace {

// One option of a structure, and how it is read.
template <class S>
struct OptionField {
  const char* name;
  void (*read)(S& options, nb::handle value);
};

uint64_t seed_of(nb::handle value) { return value.is_none() ? 0 : nb::cast<uint64_t>(value); }

constexpr struct {
  const char* name;
  DType type;
} kComputed[] = {{"float32", DType::Float32},
                 {"float64", DType::Float64},
                 {"float16", DType::Float16},
                 {"bfloat16", DType::BFloat16}};

DType dtype_of(nb::handle value) {
  const char* const name = PyUnicode_AsUTF8AndSize(value.ptr(), nullptr);
  if (!name) throw nb::python_error();
  for (const auto& known : kComputed)
    if (std::strcmp(known.name, name) == 0) return known.type;
  PyErr_Format(PyExc_ValueError, "dtype: expected a floating one's name, got %s", name);
  throw nb::python_error();
}

using Layer = faces::LayerOptions;
constexpr OptionField<Layer> kLayerOptions[] = {
    {"dtype", [](Layer& o, nb::handle v) { o.dtype = dtype_of(v); }},
    {"num_heads", [](Layer& o, nb::handle v) { o.num_heads = nb::cast<int64_t>(v); }},
    {"key_heads", [](Layer& o, nb::handle v) { o.key_heads = nb::cast<int64_t>(v); }},
    {"head_dim", [](Layer& o, nb::handle v) { o.head_dim = nb::cast<int64_t>(v); }},
    {"zero_row", [](Layer& o, nb::handle v) { o.zero_row = nb::cast<bool>(v); }},
    {"causal", [](Layer& o, nb::handle v) { o.causal = nb::cast<bool>(v); }},
    {"average",
     [](Layer& o, nb::handle v) {
       o.weights = v.is_none()         ? faces::Weights::None
                   : nb::cast<bool>(v) ? faces::Weights::Average
                                       : faces::Weights::PerHead;
     }},
    {"tokens_first", [](Layer& o, nb::handle v) { o.tokens_first = nb::cast<bool>(v); }},
    {"dropout_p", [](Layer& o, nb::handle v) { o.dropout.p = nb::cast<double>(v); }},
    {"seed", [](Layer& o, nb::handle v) { o.dropout.seed = seed_of(v); }},
    {"counter", [](Layer& o, nb::handle v) { o.dropout.counter = nb::cast<uint64_t>(v); }},
    {"softcap", [](Layer& o, nb::handle v) { o.softcap = nb::cast<double>(v); }},
    {"window_left", [](Layer& o, nb::handle v) { o.window_left = nb::cast<int64_t>(v); }},
    {"window_right", [](Layer& o, nb::handle v) { o.window_right = nb::cast<int64_t>(v); }},
    {"interleaved", [](Layer& o, nb::handle v) { o.interleaved = nb::cast<bool>(v); }},
};

using Attention = faces::AttentionOptions;
constexpr OptionField<Attention> kAttentionOptions[] = {
    {"dtype", [](Attention& o, nb::handle v) { o.dtype = dtype_of(v); }},
    {"causal", [](Attention& o, nb::handle v) { o.causal = nb::cast<bool>(v); }},
    {"scale", [](Attention& o, nb::handle v) { o.scale = nb::cast<double>(v); }},
    {"dropout_p", [](Attention& o, nb::handle v) { o.dropout.p = nb::cast<double>(v); }},
    {"seed", [](Attention& o, nb::handle v) { o.dropout.seed = seed_of(v); }},
    {"counter", [](Attention& o, nb::handle v) { o.dropout.counter = nb::cast<uint64_t>(v); }},
    {"true_hides", [](Attention& o, nb::handle v) { o.true_hides = nb::cast<bool>(v); }},
    {"batch_offset", [](Attention& o, nb::handle v) { o.offsets.batch = nb::cast<int64_t>(v); }},
    {"head_offset", [](Attention& o, nb::handle v) { o.offsets.head = nb::cast<int64_t>(v); }},
    {"query_offset", [](Attention& o, nb::handle v) { o.offsets.query = nb::cast<int64_t>(v); }},
    {"key_offset", [](Attention& o, nb::handle v) { o.offsets.key = nb::cast<int64_t>(v); }},
    {"softcap", [](Attention& o, nb::handle v) { o.softcap = nb::cast<double>(v); }},
    {"window_left", [](Attention& o, nb::handle v) { o.window_left = nb::cast<int64_t>(v); }},
    {"window_right", [](Attention& o, nb::handle v) { o.window_right = nb::cast<int64_t>(v); }},
};

// What AttentionTensors has after its views: integers of each sequence, and of a ragged batch where
// its sequences begin, which are one more.
using Arguments = faces::AttentionArguments;
constexpr struct {
  const char* name;
  int64_t more;
  const int64_t*& (*in)(Arguments& a);
} kAttentionIntegers[] = {
    {"query_offsets", 1, [](Arguments& a) -> const int64_t*& { return a.offsets.query; }},
    {"key_offsets", 1, [](Arguments& a) -> const int64_t*& { return a.offsets.key; }},
    {"query_positions", 0, [](Arguments& a) -> const int64_t*& { return a.positions.query; }},
    {"key_lengths", 0, [](Arguments& a) -> const int64_t*& { return a.positions.key_lengths; }},
};

constexpr struct {
  const char* name;
} kCachedKeys[] = {{"keys"}, {"values"}, {"rows"}, {"positions"}};

// The tuple itself, if it has as many entries as there are fields.
template <size_t N>
PyObject* entries(nb::handle tuple, const char* name) {
  if (!PyTuple_Check(tuple.ptr()) || NB_TUPLE_GET_SIZE(tuple.ptr()) != Py_ssize_t(N)) {
    PyErr_Format(PyExc_TypeError, "%s: expected a tuple of %zd", name, Py_ssize_t(N));
    throw nb::python_error();
  }
  return tuple.ptr();
}

template <size_t More = 0, class S, size_t N>
S read_views(const faces::ViewField<S> (&fields)[N], nb::handle tuple, bool written) {
  PyObject* const list = entries<N + More>(tuple, "tensors");
  S result;
  for (size_t i = 0; i < N; ++i) {
    const nb::handle object = NB_TUPLE_GET_ITEM(list, Py_ssize_t(i));
    if (!object.is_none())
      result.*fields[i].view = written ? writable(object, fields[i].name) : view_of(object);
  }
  return result;
}

template <class S, size_t N>
S read_options(const OptionField<S> (&fields)[N], nb::handle tuple) {
  PyObject* const list = entries<N>(tuple, "options");
  S result;
  for (size_t i = 0; i < N; ++i) fields[i].read(result, NB_TUPLE_GET_ITEM(list, Py_ssize_t(i)));
  return result;
}

template <class... Fields>
void check_fields(nb::handle module, const char* tuple, const Fields&... fields) {
  const nb::object names = module.attr(tuple).attr("_fields");
  size_t i = 0;
  bool same = nb::len(names) == (std::size(fields) + ...);
  const auto check = [&](const auto& list) {
    for (const auto& field : list) same = same && nb::cast<std::string>(names[i++]) == field.name;
  };
  (check(fields), ...);
  if (!same)
    throw nb::import_error(
        (std::string("multihead.arguments.") + tuple + " has other fields than _native").c_str());
}

faces::RaggedOffsets offsets_of(nb::handle pair, IntegerCopies& copies) {
  if (pair.is_none()) return {};
  const Integers q = copies.of(pair[0]), k = copies.of(pair[1]);
  if (q.count != k.count || q.count < 1)
    throw nb::value_error("offsets: expected (N + 1,) of queries and of keys");
  return {q.data, k.data, q.count - 1};
}

}  // namespace

void check_fields(nb::handle module) {
  check_fields(module, "LayerTensors", faces::kLayerTensors);
  check_fields(module, "LayerOptions", kLayerOptions);
  check_fields(module, "CachedKeys", kCachedKeys);
  check_fields(module, "AttentionTensors", faces::kAttentionTensors, kAttentionIntegers);
  check_fields(module, "AttentionOptions", kAttentionOptions);
}

faces::LayerArguments layer_arguments(nb::handle options, nb::handle tensors, nb::handle offsets,
                                      IntegerCopies& copies) {
  return {read_views(faces::kLayerTensors, tensors, false), read_options(kLayerOptions, options),
          offsets_of(offsets, copies)};
}

faces::CachedKeys cached_keys(nb::handle tuple, const faces::LayerArguments& arguments,
                              IntegerCopies& copies) {
  PyObject* const list = entries<std::size(kCachedKeys)>(tuple, "cache");
  const auto object = [&](Py_ssize_t i) { return nb::handle(NB_TUPLE_GET_ITEM(list, i)); };
  const faces::LayerTensors& t = arguments.tensors;
  const int64_t n = t.query.rank < 3 ? 1 : t.query.size[arguments.options.tokens_first ? 1 : 0];
  const auto each = [&](Py_ssize_t i) {
    const Integers found = copies.of(object(i));
    if (found.count != n)
      throw nb::value_error("kv_cache: expected one of as many sequences as query has");
    return found.data;
  };
  return {writable(object(0), "keys"), writable(object(1), "values"), each(2), each(3)};
}

faces::AttentionArguments attention_arguments(nb::handle options, nb::handle tensors,
                                              IntegerCopies& copies) {
  constexpr size_t kMore = std::size(kAttentionIntegers);
  Arguments a{read_views<kMore>(faces::kAttentionTensors, tensors, false),
              read_options(kAttentionOptions, options),
              {},
              {}};
  int64_t batch = a.tensors.query.rank == 4 ? a.tensors.query.size[0] : -1;
  for (size_t i = 0; i < kMore; ++i) {
    const nb::handle object =
        NB_TUPLE_GET_ITEM(tensors.ptr(), Py_ssize_t(std::size(faces::kAttentionTensors) + i));
    if (object.is_none()) continue;
    const auto& field = kAttentionIntegers[i];
    const Integers each = copies.of(object);
    const int64_t n = each.count - field.more;
    if (batch < 0 && field.more) batch = n;
    if (n < 0 || n != batch)
      throw nb::value_error(
          "query_offsets, key_offsets, query_positions, key_lengths: expected those of one batch");
    field.in(a) = each.data;
  }
  if (!a.offsets.query != !a.offsets.key)
    throw nb::value_error("query_offsets, key_offsets: expected both or none");
  a.offsets.batch = batch;
  return a;
}

faces::LayerTensors layer_gradients(nb::handle tensors) {
  return read_views(faces::kLayerTensors, tensors, true);
}

faces::AttentionTensors attention_gradients(nb::handle tensors) {
  return read_views<std::size(kAttentionIntegers)>(faces::kAttentionTensors, tensors, true);
}

}  // namespace multihead::binding
