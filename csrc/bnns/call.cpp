#include "call.h"

#include <algorithm>
#include <cmath>

namespace multihead::bnns {

constexpr int64_t kMost = int64_t(1) << 46;  // elements that a batch may reach over

Tensor read_batch(const Tensor& target, const std::string& name, int64_t batch, size_t stride,
                  const void* data) {
  const __int128 elements = __int128(batch) * std::max<int64_t>(target.elements(), 1);
  if (stride > size_t(kMost) || __int128(batch) * __int128(stride) > kMost || elements > kMost)
    refuse(name + "_stride", "a batch of at most 2^46 elements", std::to_string(stride));
  Tensor t = target.batched(batch, int64_t(stride), const_cast<void*>(data));
  t.name = name;
  return t;
}

void read_call(CallTensors& call, const ApplyArguments& a) {
  const Filter& f = call.filter;
  if (a.batch_size > (size_t(1) << 31) - 1)
    refuse("batch_size", "fewer than 2^31", std::to_string(a.batch_size));
  call.batch = int64_t(a.batch_size);
  call.query = read_batch(f.query.target, "query", call.batch, a.query_stride, a.query);
  call.key = read_batch(f.key.target, "key", call.batch, a.key_stride, a.key);
  call.value = read_batch(f.value.target, "value", call.batch, a.value_stride, a.value);
  if (a.key_mask) {
    Tensor mask = read_descriptor(*a.key_mask, "key_mask", 1);
    if (mask.type != BNNSDataTypeBoolean) refuse("key_mask.data_type", "Boolean", "another");
    expect_shape(mask, {f.dims.S});
    if (!mask.data) refuse("key_mask.data", "an address (or key_mask NULL)", "NULL");
    call.key_mask = read_batch(mask, "key_mask", call.batch, a.key_mask_stride, mask.data);
  }
  if (a.add_to_attention) {
    const BNNSNDArrayDescriptor& d = *a.add_to_attention;
    const int rank = int(std::clamp<uint32_t>(d.layout >> 16, 2, 4));
    call.attention = read_descriptor(d, "add_to_attention", rank);
    const int64_t T = f.dims.T, S = f.dims.S, H = f.dims.heads;
    if (rank == 2) expect_shape(call.attention, {T, S});
    if (rank == 3) expect_shape(call.attention, {H, T, S});
    if (rank == 4) expect_shape(call.attention, {call.batch, H, T, S});
    if (!call.attention.data)
      refuse("add_to_attention.data", "an address (or add_to_attention NULL)", "NULL");
  }
}

// H x T x S is the same for every sequence, as a first axis of 1 says.
static View with_batch(View v) {
  if (v.rank != 3) return v;
  for (int i = 3; i > 0; --i) v.size[i] = v.size[i - 1], v.stride[i] = v.stride[i - 1];
  v.size[0] = 1, v.stride[0] = 0;
  v.rank = 4;
  return v;
}

LayerCall layer_call(const CallTensors& call, uint64_t counter, Staging& staging) {
  const Filter& f = call.filter;
  LayerCall l;
  Parameters& p = l.parameters;
  p.query = {staging.input(f.query.weights), staging.input(f.query.bias)};
  p.key = {staging.input(f.key.weights), staging.input(f.key.bias)};
  p.value = {staging.input(f.value.weights), staging.input(f.value.bias)};
  p.out = {staging.input(f.output.weights), staging.input(f.output.bias)};
  p.bias_k = staging.input(f.key_attn_bias);
  p.bias_v = staging.input(f.value_attn_bias);
  l.query = staging.input(call.query);
  l.key = same_memory(call.key, call.query) ? l.query : staging.visible(call.key, call.key_mask);
  l.value = same_memory(call.value, call.query) ? l.query
            : same_memory(call.value, call.key) ? l.key
                                                : staging.visible(call.value, call.key_mask);
  AttentionSpec& spec = l.attention;
  spec.dtype = l.query.dtype;
  spec.heads = {.count = f.dims.heads,
                .key_count = f.dims.heads,
                .dim = f.dims.d_key,
                .value_dim = f.dims.d_value};
  spec.shape.batch = call.batch;
  spec.shape.queries = f.dims.T;
  spec.shape.keys = f.dims.S;
  spec.shape.key_padding = staging.input(call.key_mask);
  spec.bias_key = bool(f.key_attn_bias);
  check_sizes(spec);
  spec.zero_row = f.zero_row;
  spec.rules.scale = 1.0 / std::sqrt(double(f.dims.d_key));
  spec.rules.mask = score_axes(with_batch(staging.input(call.attention)), spec);
  spec.rules.dropout = {f.dropout, f.seed, counter};
  l.resources.threads = f.threads;
  l.resources.allocator = f.allocator;
  return l;
}

LayerCall without_mask(LayerCall l) {
  l.attention.shape.key_padding = {};
  return l;
}

size_t cache_size(const LayerCall& l) {
  return sizeof(CacheHeader) + cache_bytes(without_mask(l)) + kAlign;
}

uint64_t mask_hash(const Tensor& mask) {
  uint64_t hash = 14695981039346656037ull;
  if (!mask) return hash;
  const uint8_t* const base = static_cast<const uint8_t*>(mask.data);
  for (int64_t b = 0; b < mask.size[0]; ++b)
    for (int64_t j = 0; j < mask.size[1]; ++j)
      if (base[b * mask.stride[0] + j * mask.stride[1]])
        hash = (hash ^ uint64_t(b * mask.size[1] + j)) * 1099511628211ull;
  return hash;
}

void need(const Tensor& t, const char* why) {
  if (!t.data && t.elements() > 0) refuse(t.name, std::string("an address: ") + why, "NULL");
}

void expect_room(const char* name, size_t given, size_t needed) {
  if (given < needed)
    refuse(name, "at least " + std::to_string(needed) + " bytes", std::to_string(given));
}

void expect_apart(const Tensor& written, const Tensor& other) {
  if (written && other && overlap(written, other))
    refuse(written.name, "memory apart from " + other.name, "an overlap");
}

void expect_no_overlap_inside(const Tensor& t, const std::string& stride_name) {
  if (t && overlaps_itself(t))
    refuse(stride_name, "elements and batch items apart", "strides that put some on each other");
}

Tensor bytes_at(const char* name, const void* data, size_t bytes) {
  Tensor t;
  if (!data) return t;
  t.name = name;
  t.data = const_cast<void*>(data);
  t.type = BNNSDataTypeBoolean;
  t.rank = 1;
  t.size[0] = int64_t(bytes);
  t.stride[0] = 1;
  return t;
}

}  // namespace multihead::bnns
