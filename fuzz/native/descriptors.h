// Arrays by their descriptors, read by the formulas in the header: what they say, where their
// elements lie, their values. Nothing here is shared with the library.
#pragma once

#include <multihead/bnns.h>

#include <memory>
#include <vector>

#include "draws.h"

namespace fuzz {

using Descriptor = BNNSNDArrayDescriptor;
constexpr int kMostIndices = 4;
constexpr double kReach = 70368744177664.0;  // 2^46: what an array may reach over

// What the library owes a call: success with the right numbers, or an error that changes nothing.
// Unsure: it cannot know, as memory that it cannot see is not there; such calls are not made.
enum class Verdict { Accept, Refuse, Unsure };
inline Verdict worse(Verdict a, Verdict b) {  // an error anywhere is one, whatever else there is
  if (a == Verdict::Refuse || b == Verdict::Refuse) return Verdict::Refuse;
  return a == Verdict::Unsure || b == Verdict::Unsure ? Verdict::Unsure : Verdict::Accept;
}

// What a descriptor says, in the order of indices; a batch in front where there is one.
struct Seen {
  Verdict verdict = Verdict::Accept;
  int rank = 0;  // 0: absent
  int64_t size[kMostIndices + 1] = {}, stride[kMostIndices + 1] = {};
  uint32_t type = 0;
  char* data = nullptr;
  bool adds = false;
  double reach = 0;  // elements that it reaches over

  explicit operator bool() const { return rank > 0; }
  bool is(std::initializer_list<int64_t> shape) const;
  int64_t elements() const;
  int64_t item() const { return type == BNNSDataTypeBoolean ? 1 : (type & 0xFF) / 8; }
  double bytes() const { return elements() ? reach * double(item()) : 0; }
  std::vector<char*> addresses() const;  // of all elements, in the order of indices
  std::vector<double> values() const;
};

Seen see(const Descriptor& d, int rank);
// The same with an index in front; its verdict says whether the library takes such strides.
Seen batched(const Seen& one, int64_t count, size_t stride, const void* data);

double load(const char* at, uint32_t type);
void store(char* at, uint32_t type, double x);

constexpr uint32_t kVector[] = {BNNSDataLayoutVector, BNNSDataLayout1DLastMajor,
                                BNNSDataLayout1DFirstMajor};
constexpr uint32_t kMatrix[] = {BNNSDataLayoutRowMajorMatrix, BNNSDataLayoutColumnMajorMatrix,
                                BNNSDataLayout2DLastMajor, BNNSDataLayout2DFirstMajor};
constexpr uint32_t kThree[] = {BNNSDataLayoutSNE, BNNSDataLayoutNSE, BNNSDataLayoutMHA_DHK,
                               BNNSDataLayout3DLastMajor, BNNSDataLayout3DFirstMajor};
constexpr uint32_t kFour[] = {BNNSDataLayout4DLastMajor, BNNSDataLayout4DFirstMajor};

// How arrays are placed.
struct Placing {
  bool gaps = false, explicit_strides = true, misaligned = false;
};

// An array in memory of its own that ends where its last element does.
struct Slot {
  Descriptor d{};
  int rank = 0;
  size_t between = 0;  // elements between batch items; 0: it has no batch
  std::unique_ptr<uint8_t[]> memory;
  size_t bytes = 0;
  std::vector<uint8_t> before;

  void keep() { before.assign(memory.get(), memory.get() + bytes); }
  bool untouched() const;
  // Whether all but the elements of `seen` is as it was.
  bool untouched_but(const Seen& seen) const;
  bool holds(const void* at, double size) const {
    const uint8_t* p = static_cast<const uint8_t*>(at);
    return p >= memory.get() && p <= memory.get() + bytes &&
           size <= double(memory.get() + bytes - p);
  }
};

// Makes an array; batch < 0: it has no batch index.
Slot place(Draws& draws, std::vector<int64_t> shape, int64_t batch, uint32_t type, Placing how);

}  // namespace fuzz
