// The caller's arrays as their descriptors say: a dtype, and sizes and strides by index.
#pragma once

#include <multihead/bnns.h>

#include <stdexcept>
#include <string>

#include "../engine/arena.h"
#include "../engine/view.h"

namespace multihead::bnns {

// A misuse: what() names the parameter, what was expected and what came.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void refuse(const std::string& name, const std::string& expected,
                         const std::string& got);
std::string shape_text(const int64_t* size, int rank);

struct Tensor {
  std::string name;
  void* data = nullptr;
  BNNSDataType type = 0;
  int rank = 0;                                        // 0: absent
  int64_t size[kMaxRank] = {}, stride[kMaxRank] = {};  // in elements
  bool adds = false;                                   // of a gradient: to what is there

  explicit operator bool() const { return rank > 0; }
  int64_t elements() const;
  int64_t item_bytes() const { return type == BNNSDataTypeBoolean ? 1 : (type & 0xFF) / 8; }
  // Whether the engine can use the memory as it is; of no memory it can.
  bool aligned() const;
  View view() const;  // of such memory
  // The same elements, in the order of their indices.
  Tensor contiguous(void* at) const;
  // The elements at two indices, of three.
  Tensor row(int64_t a, int64_t b) const;
  // The same memory, another order of indices.
  Tensor permuted(int a, int b) const;
  Tensor permuted(int a, int b, int c) const;
  // One more index in front.
  Tensor batched(int64_t count, int64_t stride_between, void* at) const;
};

// Reads a descriptor of `rank` indices; data may be null. Throws Refused.
Tensor read_descriptor(const BNNSNDArrayDescriptor& d, const std::string& name, int rank);
void expect_shape(const Tensor& t, std::initializer_list<int64_t> size);
void expect_float(const Tensor& t);

void* take(Arena& arena, const Tensor& t);  // memory for its elements
// to = the elements in the order of their indices.
void copy_elements(const Tensor& from, void* to);
// And back from floats, set or added.
void narrow(const float* from, const Tensor& to);
void clear(const Tensor& t);  // whose elements lie apart

// Whether two tensors have an element's memory in common, or may have: true where that is hard to
// tell.
bool overlap(const Tensor& a, const Tensor& b);
bool overlaps_itself(const Tensor& t);
bool same_memory(const Tensor& a, const Tensor& b);  // the same elements in the same order

}  // namespace multihead::bnns
