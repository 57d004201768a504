// What forward and backward have in common: the caller's arrays read and checked, the engine's call
// made from them, and the memory that both need.
#pragma once

#include "../engine/layer.h"
#include "apply.h"
#include "staging.h"

namespace multihead::bnns {

// In front of a cache: which forward left it.
struct CacheHeader {
  uint64_t magic, filter, counter, batch, bytes, mask, shift;
};
constexpr uint64_t kCacheMagic = 0x6D68612D63616368ull;

// The tensors of a call, as read and checked.
struct CallTensors {
  explicit CallTensors(const Filter& f) : filter(f) {}

  const Filter& filter;
  int64_t batch = 0;
  Tensor query, key, value;    // batch x tokens x features
  Tensor key_mask, attention;  // batch x S; of 2 to 4 indices
  std::vector<const Tensor*> inputs() const {
    const Filter& f = filter;
    return {&query,
            &key,
            &value,
            &key_mask,
            &attention,
            &f.query.weights,
            &f.query.bias,
            &f.key.weights,
            &f.key.bias,
            &f.value.weights,
            &f.value.bias,
            &f.output.weights,
            &f.output.bias,
            &f.key_attn_bias,
            &f.value_attn_bias};
  }
};

// Both throw Refused.
void read_call(CallTensors& call, const ApplyArguments& arguments);
Tensor read_batch(const Tensor& target, const std::string& name, int64_t batch, size_t stride,
                  const void* data);

LayerCall layer_call(const CallTensors& call, uint64_t counter, Staging& staging);
// The same, for sizes: they do not depend on what a key mask hides.
LayerCall without_mask(LayerCall call);
size_t cache_size(const LayerCall& call);  // of a cache with its header, wherever it lies
uint64_t mask_hash(const Tensor& mask);    // of the keys that it hides: a cache holds no others

void need(const Tensor& t, const char* why);  // an address
void expect_room(const char* name, size_t given, size_t needed);
void expect_apart(const Tensor& written, const Tensor& other);
void expect_no_overlap_inside(const Tensor& t, const std::string& stride_name);
// A buffer of the caller's, for the checks of overlap.
Tensor bytes_at(const char* name, const void* data, size_t bytes);

inline size_t align_up(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
inline char* align_up(void* at) {
  return reinterpret_cast<char*>(align_up(reinterpret_cast<size_t>(at)));
}

// Where a call takes its memory: the caller's workspace, or a block of its own.
struct Workspace {
  Block64 block;
  char* at = nullptr;

  Workspace(void* given, size_t bytes, const Allocator& allocator)
      : block(given ? 0 : bytes + kAlign, allocator), at(align_up(given ? given : block.data())) {}
};

}  // namespace multihead::bnns
