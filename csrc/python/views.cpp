#include "views.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION  // an array's fields lie alike from there on
#define NO_IMPORT_ARRAY                         // they are all that is read: no function is called
#include <numpy/ndarrayobject.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace multihead::binding {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using Steps = nb::ndarray<nb::ro, const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

[[noreturn]] void wrong_dtype() {
  throw nb::type_error("array: expected float16, bfloat16, float32, float64 or bool");
}

DType dtype_of(nb::dlpack::dtype t) {
  if (t == nb::dtype<float>()) return DType::Float32;
  if (t == nb::dtype<double>()) return DType::Float64;
  if (t == nb::dtype<bool>()) return DType::Bool;
  if (t.bits == 16 && t.lanes == 1) {
    if (t.code == uint8_t(nb::dlpack::dtype_code::Float)) return DType::Float16;
    if (t.code == uint8_t(nb::dlpack::dtype_code::Bfloat)) return DType::BFloat16;
  }
  wrong_dtype();
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

// Whether a tensor can be read without an object in between: a tenth of the time.
bool is_borrowed(nb::handle object) {
  return g_exchange.type && PyObject_TypeCheck(object.ptr(), g_exchange.type);
}

nb::dlpack::dltensor borrowed(nb::handle object) {
  nb::dlpack::dltensor t{};
  if (g_exchange.table->borrow(object.ptr(), &t) != 0) throw nb::python_error();
  if (t.device.device_type != nb::device::cpu::value)
    throw nb::type_error("array: expected CPU memory");
  // Where a storage was freed, what is left of an address is the place within it.
  constexpr uintptr_t kSuspicious = uintptr_t(1) << 40;
  if (reinterpret_cast<uintptr_t>(t.data) < kSuspicious && without_memory(object, t))
    throw std::runtime_error("a tensor has no memory");
  return t;
}

View borrowed_view(nb::handle object) {
  const nb::dlpack::dltensor t = borrowed(object);
  if (t.ndim > kMaxRank) too_many_axes();
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

PyTypeObject* g_numpy_array = nullptr;  // for as long as the process lives

// Of NumPy's arrays the fields themselves are read, which is the shortest way.
bool is_numpy(nb::handle object) { return Py_TYPE(object.ptr()) == g_numpy_array; }

DType dtype_of(PyArrayObject* array) {
  switch (PyArray_TYPE(array)) {
    case NPY_FLOAT32:
      return DType::Float32;
    case NPY_FLOAT64:
      return DType::Float64;
    case NPY_BOOL:
      return DType::Bool;
    case NPY_FLOAT16:
      return DType::Float16;
    case NPY_UINT16:  // NumPy has no bfloat16: its bits
      return DType::BFloat16;
    default:
      wrong_dtype();
  }
}

View numpy_view(nb::handle object) {
  auto* const array = reinterpret_cast<PyArrayObject*>(object.ptr());
  if (PyArray_NDIM(array) > kMaxRank) too_many_axes();
  View v;
  v.data = PyArray_DATA(array);
  v.dtype = dtype_of(array);
  v.rank = PyArray_NDIM(array);
  const npy_intp item = item_bytes(v.dtype);
  if (!PyArray_ISNOTSWAPPED(array)) throw nb::type_error("array: expected native byte order");
  for (int i = 0; i < v.rank; ++i) {
    v.size[i] = PyArray_DIM(array, i);
    v.stride[i] = PyArray_STRIDE(array, i) / item;
    if (PyArray_STRIDE(array, i) % item != 0)
      throw nb::value_error("array: expected whole elements");
  }
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
      PyErr_SetString(PyExc_MemoryError, outcome.why);
      throw nb::python_error();
    case faces::Status::WrongArgument:
      throw std::invalid_argument(outcome.why);
    case faces::Status::Interrupted:
      if (!PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "a signal's handler forked this process during a call");
      throw nb::python_error();
    case faces::Status::Failed:
      break;
  }
  throw std::runtime_error(outcome.why);
}

View view_of(nb::handle object) {
  if (object.is_none()) return View{};
  if (is_borrowed(object)) return borrowed_view(object);
  return is_numpy(object) ? numpy_view(object) : array_view(nb::cast<Array>(object));
}

View writable(nb::handle object, const char* name) {
  if (!object.is_none() && is_numpy(object) &&
      !PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(object.ptr())))
    throw nb::value_error((std::string(name) + ": expected a writable array").c_str());
  return view_of(object);
}

namespace {

Integers integers_of(nb::handle object) {
  if (!is_borrowed(object)) {
    const Steps steps = nb::cast<Steps>(object);
    return {steps.data(), int64_t(steps.shape(0))};
  }
  const nb::dlpack::dltensor t = borrowed(object);
  const bool dense = t.ndim == 1 && (t.shape[0] <= 1 || !t.strides || t.strides[0] == 1);
  if (!dense || t.dtype != nb::dtype<int64_t>())
    throw nb::type_error("offsets: expected int64, side by side");
  return {reinterpret_cast<const int64_t*>(static_cast<char*>(t.data) + t.byte_offset), t.shape[0]};
}

}  // namespace

Integers IntegerCopies::of(nb::handle object) {
  const Integers given = integers_of(object);
  const std::vector<int64_t>& copy = held_.emplace_back(given.data, given.data + given.count);
  return {copy.data(), given.count};
}

void find_numpy() {
  g_numpy_array = reinterpret_cast<PyTypeObject*>(
      nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr());
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
