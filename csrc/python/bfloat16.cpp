// bfloat16 travels as its bits: NumPy has no such dtype.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

#include "calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace multihead::binding {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

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

}  // namespace

void add_bfloat16(nb::module_& m) {
  m.def("bfloat16_bits", &bfloat16_bits, "array"_a,
        nb::sig("def bfloat16_bits(array: object) -> numpy.typing.NDArray[numpy.uint16]"));
  m.def("dlpack_bfloat16", &dlpack_bfloat16, "bits"_a,
        nb::sig("def dlpack_bfloat16(bits: numpy.typing.NDArray[numpy.uint16]) -> object"));
}

}  // namespace multihead::binding
