#include "descriptors.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fuzz {
namespace {

struct Form {
  uint32_t layout;
  int rank;
  int nearest[4];  // the index that each stride belongs to
  bool columns_first;
};

constexpr Form kForms[] = {
    {BNNSDataLayoutVector, 1, {0}, false},
    {BNNSDataLayout1DLastMajor, 1, {0}, false},
    {BNNSDataLayout1DFirstMajor, 1, {0}, false},
    {BNNSDataLayoutRowMajorMatrix, 2, {1, 0}, true},
    {BNNSDataLayoutColumnMajorMatrix, 2, {0, 1}, false},
    {BNNSDataLayout2DLastMajor, 2, {0, 1}, false},
    {BNNSDataLayout2DFirstMajor, 2, {1, 0}, false},
    {BNNSDataLayoutSNE, 3, {0, 1, 2}, false},
    {BNNSDataLayoutNSE, 3, {0, 1, 2}, false},
    {BNNSDataLayoutMHA_DHK, 3, {1, 2, 0}, false},
    {BNNSDataLayout3DLastMajor, 3, {0, 1, 2}, false},
    {BNNSDataLayout3DFirstMajor, 3, {2, 1, 0}, false},
    {BNNSDataLayout4DLastMajor, 4, {0, 1, 2, 3}, false},
    {BNNSDataLayout4DFirstMajor, 4, {3, 2, 1, 0}, false},
};

const Form* form_of(uint32_t layout) {
  for (const Form& f : kForms)
    if (f.layout == layout) return &f;
  return nullptr;
}

// Near the limit the library may count another way.
Verdict within(double x) {
  if (x <= kReach / 2) return Verdict::Accept;
  return x > 2 * kReach ? Verdict::Refuse : Verdict::Unsure;
}

double of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31)
    return fraction ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

uint16_t to_half(double x) {  // of numbers that are normal in it, and of what is not finite
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7E00;
  x = std::fabs(x);
  if (x >= 65520) return sign | 0x7C00;
  if (x < 6.104e-05) return sign | uint16_t(std::nearbyint(std::ldexp(x, 24)));
  int exponent;
  const double fraction = std::frexp(x, &exponent);
  return sign | uint16_t((exponent + 13) * 1024 + std::nearbyint(std::ldexp(fraction, 11)));
}

}  // namespace

double load(const char* at, uint32_t type) {
  if (type == BNNSDataTypeBoolean) return *at != 0;
  if (type == BNNSDataTypeFloat32) {
    float x;
    std::memcpy(&x, at, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  if (type == BNNSDataTypeFloat16) return of_half(bits);
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

void store(char* at, uint32_t type, double x) {
  const float f = float(x);
  if (type == BNNSDataTypeBoolean) {
    *at = x != 0;
  } else if (type == BNNSDataTypeFloat32) {
    std::memcpy(at, &f, 4);
  } else {
    uint32_t wide;
    std::memcpy(&wide, &f, 4);
    const uint16_t bits = type == BNNSDataTypeFloat16 ? to_half(x) : uint16_t(wide >> 16);
    std::memcpy(at, &bits, 2);
  }
}

bool Seen::is(std::initializer_list<int64_t> shape) const {
  return rank == int(shape.size()) && std::equal(shape.begin(), shape.end(), size);
}

int64_t Seen::elements() const {
  double n = 1;
  for (int i = 0; i < rank; ++i) n *= double(size[i]);
  return int64_t(std::min(n, 2 * kReach));  // more is refused anyway
}

std::vector<char*> Seen::addresses() const {
  std::vector<char*> found;
  if (!rank || !elements()) return found;
  found.resize(size_t(elements()));
  int64_t index[kMostIndices + 1] = {};
  char* at = data;
  for (char*& to : found) {
    to = at;
    for (int i = rank - 1; i >= 0; --i) {
      at += stride[i] * item();
      if (++index[i] < size[i]) break;
      at -= size[i] * stride[i] * item();
      index[i] = 0;
    }
  }
  return found;
}

std::vector<double> Seen::values() const {
  const std::vector<char*> all = addresses();
  std::vector<double> found(all.size());
  std::transform(all.begin(), all.end(), found.begin(), [&](char* at) { return load(at, type); });
  return found;
}

Seen see(const Descriptor& d, int rank) {
  Seen s;
  s.rank = rank;
  s.type = d.data_type;
  s.data = static_cast<char*>(d.data);
  s.adds = d.flags == BNNSNDArrayFlagBackpropAccumulate;
  const Form* const form = form_of(d.layout);
  const bool known = d.data_type == BNNSDataTypeFloat32 || d.data_type == BNNSDataTypeFloat16 ||
                     d.data_type == BNNSDataTypeBFloat16 || d.data_type == BNNSDataTypeBoolean;
  if (!form || form->rank != rank || !known) {
    s.verdict = Verdict::Refuse;
    return s;
  }
  double elements = 1, next = 1, all = 1;
  for (int slot = 0; slot < rank; ++slot) {
    const int index = form->columns_first ? 1 - slot : slot;
    s.verdict = worse(s.verdict, within(double(d.size[slot])));
    s.verdict = worse(s.verdict, within(elements *= std::max(double(d.size[slot]), 1.0)));
    s.size[index] = int64_t(std::min(double(d.size[slot]), 2 * kReach));
  }
  for (int slot = 0; slot < rank; ++slot) {
    const int index = form->nearest[slot];
    const double stride = d.stride[slot] ? double(d.stride[slot]) : next;
    s.verdict = worse(s.verdict, within(stride));
    next = stride * std::max(double(s.size[index]), 1.0);
    all += next;
    s.verdict = worse(s.verdict, within(all * double(s.item())));
    if (s.verdict != Verdict::Accept) return s;
    s.stride[index] = int64_t(stride);
  }
  s.reach = 1;
  for (int i = 0; i < rank; ++i)
    s.reach += double(std::max<int64_t>(s.size[i], 1) - 1) * double(s.stride[i]);
  return s;
}

Seen batched(const Seen& one, int64_t count, size_t stride, const void* data) {
  Seen s = one;
  s.data = const_cast<char*>(static_cast<const char*>(data));
  s.rank = one.rank + 1;
  std::copy(one.size, one.size + one.rank, s.size + 1);
  std::copy(one.stride, one.stride + one.rank, s.stride + 1);
  s.size[0] = count;
  s.verdict = worse(s.verdict, within(double(stride)));
  s.verdict = worse(s.verdict, within(double(stride) * double(count)));
  s.verdict = worse(s.verdict, within(double(count) * std::max(double(one.elements()), 1.0)));
  s.stride[0] = s.verdict == Verdict::Accept ? int64_t(stride) : 0;
  s.reach += double(std::max<int64_t>(count, 1) - 1) * double(stride);
  return s;
}

bool Slot::untouched() const { return std::equal(before.begin(), before.end(), memory.get()); }

bool Slot::untouched_but(const Seen& seen) const {
  std::vector<uint8_t> was = before;
  for (const char* at : seen.addresses()) {
    const size_t offset = size_t(reinterpret_cast<const uint8_t*>(at) - memory.get());
    std::memcpy(was.data() + offset, at, size_t(seen.item()));
  }
  return std::equal(was.begin(), was.end(), memory.get());
}

Slot place(Draws& draws, std::vector<int64_t> shape, int64_t batch, uint32_t type, Placing how) {
  Slot s;
  s.rank = int(shape.size());
  const int64_t item = type == BNNSDataTypeBoolean ? 1 : (type & 0xFF) / 8;
  s.d.layout = s.rank == 1   ? draws.pick(kVector)
               : s.rank == 2 ? draws.pick(kMatrix)
               : s.rank == 3 ? draws.pick(kThree)
                             : draws.pick(kFour);
  s.d.data_type = type;
  const Form& form = *form_of(s.d.layout);
  int64_t next = 1;
  for (int slot = 0; slot < s.rank; ++slot) {
    s.d.size[slot] = size_t(shape[size_t(form.columns_first ? 1 - slot : slot)]);
    if (how.explicit_strides) s.d.stride[slot] = size_t(next);
    const int64_t room = how.gaps && how.explicit_strides ? draws.below(4) : 0;
    next *= std::max<int64_t>(shape[size_t(form.nearest[slot])], 1) + room;
  }
  Seen seen = see(s.d, s.rank);
  if (batch >= 0) {
    s.between = size_t(next + (how.gaps ? draws.below(9) : 0));
    seen = batched(seen, batch, s.between, nullptr);
  }
  const size_t lead = how.misaligned && item > 1 ? 1 : 0;
  s.bytes = lead + size_t(seen.bytes());
  s.memory.reset(new uint8_t[s.bytes]);
  std::fill_n(s.memory.get(), s.bytes, uint8_t(0x55));
  s.d.data = s.memory.get() + lead;
  s.keep();
  return s;
}

}  // namespace fuzz
