#include "tensor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "../kernels/storage.h"

namespace multihead::bnns {
namespace {

constexpr int64_t kMost = int64_t(1) << 46;  // bytes that any array may reach over

// A layout: its rank, which index each slot of stride[] belongs to, and which of size[].
struct Layout {
  BNNSDataLayout value;
  int rank;
  int stride_of[4], size_of[4];
};

constexpr Layout kLayouts[] = {
    {BNNSDataLayoutVector, 1, {0}, {0}},
    {BNNSDataLayout1DLastMajor, 1, {0}, {0}},
    {BNNSDataLayout1DFirstMajor, 1, {0}, {0}},
    {BNNSDataLayoutRowMajorMatrix, 2, {1, 0}, {1, 0}},
    {BNNSDataLayoutColumnMajorMatrix, 2, {0, 1}, {0, 1}},
    {BNNSDataLayout2DLastMajor, 2, {0, 1}, {0, 1}},
    {BNNSDataLayout2DFirstMajor, 2, {1, 0}, {0, 1}},
    {BNNSDataLayoutSNE, 3, {0, 1, 2}, {0, 1, 2}},
    {BNNSDataLayoutNSE, 3, {0, 1, 2}, {0, 1, 2}},
    {BNNSDataLayoutMHA_DHK, 3, {1, 2, 0}, {0, 1, 2}},
    {BNNSDataLayout3DLastMajor, 3, {0, 1, 2}, {0, 1, 2}},
    {BNNSDataLayout3DFirstMajor, 3, {2, 1, 0}, {0, 1, 2}},
    {BNNSDataLayout4DLastMajor, 4, {0, 1, 2, 3}, {0, 1, 2, 3}},
    {BNNSDataLayout4DFirstMajor, 4, {3, 2, 1, 0}, {0, 1, 2, 3}},
};

std::string hexadecimal(uint32_t x) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", x);
  return text;
}

float load(const char* at, BNNSDataType type) {
  if (type == BNNSDataTypeFloat32) {
    float x;
    std::memcpy(&x, at, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return type == BNNSDataTypeFloat16 ? widen(Float16{bits}) : widen(BFloat16{bits});
}

void store(char* at, BNNSDataType type, float x) {
  if (type == BNNSDataTypeFloat32) {
    std::memcpy(at, &x, 4);
    return;
  }
  Float16 half;
  BFloat16 brain;
  narrow(half, x), narrow(brain, x);
  std::memcpy(at, type == BNNSDataTypeFloat16 ? &half.bits : &brain.bits, 2);
}

// f(element's address) for every element, in the order of the indices.
template <class F>
void each(const Tensor& t, F f) {
  int64_t size[kMaxRank], step[kMaxRank];
  for (int i = 0; i < kMaxRank; ++i) {
    const int axis = i - (kMaxRank - t.rank);
    size[i] = axis < 0 ? 1 : t.size[axis];
    step[i] = axis < 0 ? 0 : t.stride[axis] * t.item_bytes();
  }
  char* const base = static_cast<char*>(t.data);
  for (int64_t a = 0; a < size[0]; ++a)
    for (int64_t b = 0; b < size[1]; ++b)
      for (int64_t c = 0; c < size[2]; ++c) {
        char* at = base + a * step[0] + b * step[1] + c * step[2];
        for (int64_t d = 0; d < size[3]; ++d, at += step[3]) f(at);
      }
}

int64_t reach(const Tensor& t) {  // in bytes
  int64_t last = 1;
  for (int i = 0; i < t.rank; ++i) last += (t.size[i] - 1) * t.stride[i];
  return last * t.item_bytes();
}

}  // namespace

void refuse(const std::string& name, const std::string& expected, const std::string& got) {
  throw Refused(name + ": expected " + expected + ", got " + got);
}

std::string shape_text(const int64_t* size, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(size[i]);
  return text + (rank == 1 ? ",)" : ")");
}

int64_t Tensor::elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= size[i];
  return n;
}

bool Tensor::aligned() const {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(item_bytes()) == 0;
}

View Tensor::view() const {
  View v;
  v.data = data;
  v.dtype = type == BNNSDataTypeBoolean    ? DType::Bool
            : type == BNNSDataTypeFloat16  ? DType::Float16
            : type == BNNSDataTypeBFloat16 ? DType::BFloat16
                                           : DType::Float32;
  v.rank = rank;
  std::copy(size, size + rank, v.size);
  std::copy(stride, stride + rank, v.stride);
  return v;
}

Tensor Tensor::contiguous(void* at) const {
  Tensor t = *this;
  t.data = at;
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) t.stride[i] = step, step *= size[i];
  return t;
}

Tensor Tensor::row(int64_t a, int64_t b) const {
  Tensor t = *this;
  t.data = static_cast<char*>(data) + (a * stride[0] + b * stride[1]) * item_bytes();
  t.rank = 1;
  t.size[0] = size[2], t.stride[0] = stride[2];
  return t;
}

Tensor Tensor::permuted(int a, int b) const {
  Tensor t = *this;
  t.size[0] = size[a], t.size[1] = size[b];
  t.stride[0] = stride[a], t.stride[1] = stride[b];
  return t;
}

Tensor Tensor::permuted(int a, int b, int c) const {
  Tensor t = permuted(a, b);
  t.size[2] = size[c], t.stride[2] = stride[c];
  return t;
}

Tensor Tensor::batched(int64_t count, int64_t stride_between, void* at) const {
  Tensor t = *this;
  t.data = at;
  t.rank = rank + 1;
  std::copy(size, size + rank, t.size + 1);
  std::copy(stride, stride + rank, t.stride + 1);
  t.size[0] = count;
  t.stride[0] = stride_between;
  return t;
}

Tensor read_descriptor(const BNNSNDArrayDescriptor& d, const std::string& name, int rank) {
  const Layout* layout = std::find_if(std::begin(kLayouts), std::end(kLayouts),
                                      [&](const Layout& l) { return l.value == d.layout; });
  if (layout == std::end(kLayouts)) refuse(name + ".layout", "a known one", hexadecimal(d.layout));
  if (layout->rank != rank)
    refuse(name + ".layout", "one of " + std::to_string(rank) + " dimensions",
           hexadecimal(d.layout) + " of " + std::to_string(layout->rank));
  Tensor t;
  t.name = name;
  t.data = d.data;
  t.type = d.data_type;
  t.rank = rank;
  t.adds = d.flags == BNNSNDArrayFlagBackpropAccumulate;
  switch (d.data_type) {
    case BNNSDataTypeFloat16:
    case BNNSDataTypeFloat32:
    case BNNSDataTypeBFloat16:
    case BNNSDataTypeBoolean:
      break;
    default:
      refuse(name + ".data_type", "Float32, Float16 or BFloat16 (Boolean for masks)",
             hexadecimal(d.data_type));
  }
  for (int slot = 0; slot < rank; ++slot) {
    if (d.size[slot] > size_t(kMost))
      refuse(name + ".size", "at most 2^46", std::to_string(d.size[slot]));
    t.size[layout->size_of[slot]] = int64_t(d.size[slot]);
  }
  __int128 elements = 1;
  for (int i = 0; i < rank; ++i)
    if ((elements *= std::max<int64_t>(t.size[i], 1)) > kMost)
      refuse(name + ".size", "at most 2^46 elements", shape_text(t.size, rank));
  __int128 contiguous = 1, bytes = t.item_bytes();
  for (int slot = 0; slot < rank; ++slot) {
    const int index = layout->stride_of[slot];
    if (d.stride[slot] > size_t(kMost))
      refuse(name + ".stride", "at most 2^46", std::to_string(d.stride[slot]));
    t.stride[index] = d.stride[slot] ? int64_t(d.stride[slot]) : int64_t(contiguous);
    contiguous = __int128(t.stride[index]) * std::max<int64_t>(t.size[index], 1);
    bytes += contiguous * t.item_bytes();
    if (contiguous > kMost || bytes > kMost)
      refuse(name, "an array of at most 2^46 bytes", "sizes " + shape_text(t.size, rank));
  }
  return t;
}

void expect_shape(const Tensor& t, std::initializer_list<int64_t> size) {
  if (!std::equal(size.begin(), size.end(), t.size, t.size + t.rank))
    refuse(t.name + ".size", shape_text(size.begin(), int(size.size())),
           shape_text(t.size, t.rank));
}

void expect_float(const Tensor& t) {
  if (t.type == BNNSDataTypeBoolean)
    refuse(t.name + ".data_type", "Float32, Float16 or BFloat16", "Boolean");
}

void* take(Arena& arena, const Tensor& t) {
  return arena.take<char>(t.elements() * t.item_bytes());
}

void copy_elements(const Tensor& from, void* to) {
  const size_t item = size_t(from.item_bytes());
  char* at = static_cast<char*>(to);
  each(from, [&](const char* element) { std::memcpy(at, element, item), at += item; });
}

void narrow(const float* from, const Tensor& to) {
  each(to, [&](char* at) {
    store(at, to.type, to.adds ? load(at, to.type) + *from : *from);
    ++from;
  });
}

void clear(const Tensor& t) {
  if (t.elements() == 0) return;
  if (reach(t) == t.elements() * t.item_bytes()) {  // no gaps: in any order
    std::memset(t.data, 0, size_t(reach(t)));
  } else {
    each(t, [&](char* at) { store(at, t.type, 0.0f); });
  }
}

bool overlap(const Tensor& a, const Tensor& b) {
  if (!a.data || !b.data || a.elements() == 0 || b.elements() == 0) return false;
  const uintptr_t first_a = reinterpret_cast<uintptr_t>(a.data),
                  first_b = reinterpret_cast<uintptr_t>(b.data);
  if (first_a + uintptr_t(reach(a)) <= first_b || first_b + uintptr_t(reach(b)) <= first_a)
    return false;
  // Pieces of rows side by side: on a circle as long as all steps but the shortest have in common,
  // each is an arc.
  int64_t circle = 0, arc[2] = {};
  const Tensor* both[] = {&a, &b};
  for (int k = 0; k < 2; ++k) {
    const Tensor& t = *both[k];
    int inner = -1;
    for (int i = 0; i < t.rank; ++i)
      if (t.size[i] > 1 && (inner < 0 || t.stride[i] < t.stride[inner])) inner = i;
    arc[k] = t.item_bytes();
    for (int i = 0; i < t.rank; ++i) {
      const int64_t step = t.stride[i] * t.item_bytes();
      if (i == inner) {
        arc[k] += (t.size[i] - 1) * step;
      } else if (t.size[i] > 1) {
        circle = std::gcd(circle, step);
      }
    }
  }
  if (circle == 0) return true;
  const bool after = first_b >= first_a;
  const uintptr_t between = after ? first_b - first_a : first_a - first_b;
  const int64_t rest = int64_t(between % uintptr_t(circle));
  const int64_t distance = after ? rest : (circle - rest) % circle;
  return !(distance >= arc[0] && circle - distance >= arc[1]);
}

bool overlaps_itself(const Tensor& t) {
  if (t.elements() == 0) return false;
  int order[kMaxRank] = {0, 1, 2, 3};  // shortest stride first
  for (int i = 1; i < t.rank; ++i)
    for (int j = i; j > 0 && t.stride[order[j]] < t.stride[order[j - 1]]; --j)
      std::swap(order[j], order[j - 1]);
  int64_t covered = 1;
  for (int i = 0; i < t.rank; ++i) {
    const int64_t size = t.size[order[i]], stride = t.stride[order[i]];
    if (size <= 1) continue;
    if (stride < covered) return true;
    covered += stride * (size - 1);
  }
  return false;
}

bool same_memory(const Tensor& a, const Tensor& b) {
  if (a.data != b.data || a.type != b.type || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i)
    if (a.size[i] != b.size[i] || (a.size[i] > 1 && a.stride[i] != b.stride[i])) return false;
  return true;
}

}  // namespace multihead::bnns
