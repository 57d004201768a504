#include "views.h"

#include <stdexcept>
#include <string>

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

// NumPy's arrays speak the buffer protocol, which is the shortest way.
struct Buffer {
  Py_buffer view;
  explicit Buffer(PyObject* object) {
    if (PyObject_GetBuffer(object, &view, PyBUF_STRIDES | PyBUF_FORMAT) != 0)
      throw nb::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view); }
};

bool is_numpy(nb::handle object) {
  static PyTypeObject* const type = reinterpret_cast<PyTypeObject*>(
      nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr());
  return Py_TYPE(object.ptr()) == type;
}

DType dtype_of(const Py_buffer& b) {
  const char* const f = b.format ? b.format : "";
  if (f[0] && !f[1]) {
    if (f[0] == 'f') return DType::Float32;
    if (f[0] == 'd') return DType::Float64;
    if (f[0] == '?') return DType::Bool;
  }
  throw nb::type_error("array: expected float32, float64 or bool");
}

View buffer_view(nb::handle object, bool* readonly) {
  const Buffer buffer(object.ptr());
  const Py_buffer& b = buffer.view;
  if (b.ndim > kMaxRank) too_many_axes();
  View v;
  v.data = b.buf;
  v.dtype = dtype_of(b);
  v.rank = b.ndim;
  for (int i = 0; i < b.ndim; ++i) {
    v.size[i] = b.shape[i];
    v.stride[i] = b.strides[i] / b.itemsize;
    if (b.strides[i] % b.itemsize != 0) throw nb::value_error("array: expected whole elements");
  }
  *readonly = b.readonly;
  return v;
}

}  // namespace

const EngineTable& engine() {
  static const EngineTable* const table = multihead_private_table();
  return *table;
}

void check(const faces::Outcome& outcome) {
  switch (outcome.status) {
    case faces::Status::Done:
      return;
    case faces::Status::OutOfMemory:
      throw std::bad_alloc();
    case faces::Status::WrongArgument:
      throw std::invalid_argument(outcome.why);
    case faces::Status::Failed:
      break;
  }
  throw std::runtime_error(outcome.why);
}

View view_of(nb::handle object) {
  if (object.is_none()) return View{};
  if (g_exchange.type && PyObject_TypeCheck(object.ptr(), g_exchange.type))
    return borrowed_view(object);
  bool readonly = false;
  return is_numpy(object) ? buffer_view(object, &readonly) : array_view(nb::cast<Array>(object));
}

View writable(nb::handle object, const char* name) {
  bool readonly = false;
  if (object.is_none() || !is_numpy(object)) return view_of(object);
  const View v = buffer_view(object, &readonly);
  if (readonly) throw nb::value_error((std::string(name) + ": expected a writable array").c_str());
  return v;
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

}  // namespace multihead::binding
