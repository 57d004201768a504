#include "operand.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace multihead::xla {
namespace {

[[noreturn]] void wrong(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(name + (": expected " + expected + ", got " + got));
}

// Of integers, which the engine has no views of, any.
DType dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F64:
      return DType::Float64;
    case ffi::DataType::F16:
      return DType::Float16;
    case ffi::DataType::BF16:
      return DType::BFloat16;
    case ffi::DataType::PRED:
      return DType::Bool;
    default:
      return DType::Float32;
  }
}

Operand operand_of(const char* name, const ffi::AnyBuffer& buffer, int rank, int batch_axis) {
  const Sizes sizes = buffer.dimensions();
  if (int64_t(sizes.size()) < rank)
    wrong(name, std::to_string(rank) + " axes", std::to_string(sizes.size()));
  const size_t lead = sizes.size() - size_t(rank);
  Operand o;
  o.type = buffer.element_type();
  o.lead = Sizes(sizes.begin(), lead);
  o.batch_axis = batch_axis;
  o.view.data = buffer.untyped_data();
  o.view.dtype = dtype_of(o.type);
  o.view.rank = rank;
  o.elements = 1;
  for (int i = rank; i-- > 0; o.elements *= o.view.size[i]) {
    o.view.size[i] = sizes[lead + size_t(i)];
    o.view.stride[i] = o.elements;
  }
  return o;
}

std::optional<ffi::AnyBuffer> buffer(const ffi::RemainingArgs& all, size_t i) {
  const auto found = all.get<ffi::AnyBuffer>(i);
  return found ? std::optional(*found) : std::nullopt;
}

std::optional<ffi::AnyBuffer> buffer(const ffi::RemainingRets& all, size_t i) {
  auto found = all.get<ffi::AnyBuffer>(i);
  return found ? std::optional(**found) : std::nullopt;
}

}  // namespace

void Operand::swap_axes(int a, int b) {
  std::swap(view.size[a], view.size[b]);
  std::swap(view.stride[a], view.stride[b]);
  batch_axis = batch_axis == a ? b : batch_axis == b ? a : batch_axis;
}

int64_t Operand::lead_stride(size_t axis) const {
  int64_t stride = elements;
  for (size_t i = axis + 1; i < lead.size(); ++i) stride *= lead[i];
  return stride;
}

View Operand::at(int64_t element) const {
  View v = view;
  if (v) v.data = static_cast<char*>(v.data) + element * int64_t(ffi::ByteWidth(type));
  return v;
}

template <class Buffers>
Operand Reader<Buffers>::take(const char* name, int rank, int batch_axis) {
  const std::optional<ffi::AnyBuffer> found = buffer(buffers_, next_++);
  if (!found) wrong(name, "a buffer", "none");
  return operand_of(name, *found, rank, batch_axis);
}

template <class Buffers>
Operand Reader<Buffers>::take_tokens(const char* name, int batch_axis) {
  Operand o = take(name, 4, batch_axis);
  o.swap_axes(1, 2);
  return o;
}

template class Reader<ffi::RemainingArgs>;
template class Reader<ffi::RemainingRets>;

std::vector<int64_t> integers_of(const Operand& operand, int64_t element, int64_t count) {
  const View v = operand.at(element);
  const bool wide = operand.type == ffi::DataType::S64;
  std::vector<int64_t> found(size_t(count), 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = v.size[0] == 1 ? 0 : i * v.stride[0];
    found[size_t(i)] = wide ? v.as<int64_t>()[at] : v.as<int32_t>()[at];
  }
  return found;
}

}  // namespace multihead::xla
