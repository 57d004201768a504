#include "views.h"

namespace nb = nanobind;

namespace multihead::binding {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

// The head of DLPack's exchange table, as of its version 1.3; only `borrow` is called.
struct ExchangeTable {
  struct Header {
    uint32_t major, minor;
    Header* previous;
  } header;
  void* allocate;
  void* export_owned;
  void* import_owned;
  int (*borrow)(void* object, nb::dlpack::dltensor* out);  // 0, or -1 with a Python error set
};

struct Exchange {
  PyTypeObject* type = nullptr;
  const ExchangeTable* table = nullptr;
} g_exchange;

DType dtype_of(nb::dlpack::dtype t) {
  if (t == nb::dtype<float>()) return DType::Float32;
  if (t == nb::dtype<double>()) return DType::Float64;
  if (t == nb::dtype<bool>()) return DType::Bool;
  throw nb::type_error("array: expected float32, float64 or bool");
}

void too_many_axes() { throw nb::value_error("array: expected at most 4 axes"); }

View array_view(const Array& a) {
  if (a.ndim() > size_t(kMaxRank)) too_many_axes();
  View v;
  v.data = const_cast<void*>(a.data());
  v.dtype = dtype_of(a.dtype());
  v.rank = int(a.ndim());
  for (size_t i = 0; i < a.ndim(); ++i) {
    v.size[i] = int64_t(a.shape(i));
    v.stride[i] = a.stride(i);
  }
  return v;
}

bool without_memory(nb::handle tensor, const nb::dlpack::dltensor& t) {
  for (int i = 0; i < t.ndim; ++i)
    if (t.shape[i] == 0) return false;
  return !t.data || nb::cast<int64_t>(tensor.attr("untyped_storage")().attr("nbytes")()) == 0;
}

// Without an object in between: a tenth of the time.
View borrowed_view(nb::handle object) {
  nb::dlpack::dltensor t{};
  if (g_exchange.table->borrow(object.ptr(), &t) != 0) throw nb::python_error();
  if (t.device.device_type != nb::device::cpu::value)
    throw nb::type_error("array: expected CPU memory");
  if (t.ndim > kMaxRank) too_many_axes();
  // Where a storage was freed, what is left of an address is the place within it.
  constexpr uintptr_t kSuspicious = uintptr_t(1) << 40;
  if (reinterpret_cast<uintptr_t>(t.data) < kSuspicious && without_memory(object, t))
    throw std::runtime_error("a tensor has no memory");
  View v;
  v.data = static_cast<char*>(t.data) + t.byte_offset;
  v.dtype = dtype_of(t.dtype);
  v.rank = t.ndim;
  int64_t dense = 1;
  for (int i = t.ndim; i-- > 0; dense *= t.shape[i]) {
    v.size[i] = t.shape[i];
    v.stride[i] = t.strides ? t.strides[i] : dense;
  }
  return v;
}

using Offsets = nb::ndarray<nb::ro, const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

}  // namespace

const EngineTable& engine() {
  static const EngineTable* const table = multihead_private_table();
  return *table;
}

void check(const char* why) {
  if (why) throw std::runtime_error(why);
}

View view_of(nb::handle object) {
  if (object.is_none()) return View{};
  if (g_exchange.type && PyObject_TypeCheck(object.ptr(), g_exchange.type))
    return borrowed_view(object);
  return array_view(nb::cast<Array>(object));
}

bool exchange_with(nb::handle type, nb::handle capsule) {
  const void* table = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (!table) throw nb::python_error();
  const auto* found = static_cast<const ExchangeTable*>(table);
  if (found->header.major != 1 || !found->borrow) return false;
  Py_INCREF(type.ptr());  // for as long as the process lives
  g_exchange = {reinterpret_cast<PyTypeObject*>(type.ptr()), found};
  return true;
}

View by_head(View v, int64_t heads) {
  if (!v) return v;
  for (int i = v.rank; i > 1; --i) v.size[i] = v.size[i - 1], v.stride[i] = v.stride[i - 1];
  v.size[1] = v.size[0] / heads;
  v.size[0] = heads;
  v.stride[1] = v.stride[0];
  v.stride[0] = v.stride[1] * v.size[1];
  ++v.rank;
  return v;
}

View out_by_head(View v, int64_t heads) {
  if (!v) return v;
  std::swap(v.size[0], v.size[1]);
  std::swap(v.stride[0], v.stride[1]);
  return by_head(v, heads);
}

Dropout dropout_of(nb::handle three) {
  return {nb::cast<double>(three[0]), nb::cast<uint64_t>(three[1]), nb::cast<uint64_t>(three[2])};
}

void set_offsets(BatchShape& shape, nb::handle pair) {
  const Offsets q = nb::cast<Offsets>(pair[0]), k = nb::cast<Offsets>(pair[1]);
  shape.batch = int64_t(q.shape(0)) - 1;
  shape.query_offsets = q.data();
  shape.key_offsets = k.data();
  for (int64_t b = 0; b < shape.batch; ++b) {
    shape.queries = larger(shape.queries, q.data()[b + 1] - q.data()[b]);
    shape.keys = larger(shape.keys, k.data()[b + 1] - k.data()[b]);
  }
}

WeightsView weights_of(nb::handle weights, bool average, int64_t heads, LayerCall* call) {
  WeightsView w;
  if (weights.is_none()) return w;
  w.view = view_of(weights);
  w.heads = average ? 1 : heads;
  if (call) call->shape.weight_heads = w.heads;
  return w;
}

}  // namespace multihead::binding
