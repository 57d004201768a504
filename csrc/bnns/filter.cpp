#include "filter.h"

#include <algorithm>
#include <new>
#include <random>

#include "../engine/thread_pool.h"

namespace multihead::bnns {
namespace {

constexpr int64_t kMostTokens = (int64_t(1) << 31) - 65536;

void expect_positive(const Tensor& t) {
  for (int i = 0; i < t.rank; ++i)
    if (t.size[i] < 1) refuse(t.name + ".size", "at least 1", shape_text(t.size, t.rank));
}

// in x D x H as (H, D, in); D x H as (H, D).
Tensor by_head(const Tensor& t) { return t.rank == 3 ? t.permuted(2, 1, 0) : t.permuted(1, 0); }

// H D x E as (H, D, E).
Tensor output_by_head(const Tensor& t, int64_t heads) {
  Tensor r = t;
  r.rank = 3;
  r.size[0] = heads, r.size[1] = t.size[0] / heads, r.size[2] = t.size[1];
  r.stride[1] = t.stride[0], r.stride[2] = t.stride[1];
  r.stride[0] = r.stride[1] * r.size[1];
  return r;
}

void expect_data(const Tensor& t) {
  if (!t.data) refuse(t.name + ".data", "an address", "NULL");
}

}  // namespace

Projected read_projection(const BNNSMHAProjectionParameters& p, const std::string& name,
                          bool is_output) {
  Projected r;
  r.target = read_descriptor(p.target_desc, name + ".target_desc", 2);
  expect_float(r.target);
  r.weights = read_descriptor(p.weights, name + ".weights", is_output ? 2 : 3);
  expect_float(r.weights);
  if (p.bias.data) {
    r.bias = read_descriptor(p.bias, name + ".bias", is_output ? 1 : 2);
    expect_float(r.bias);
  }
  return r;
}

Tensor read_attention_bias(const BNNSNDArrayDescriptor& d, const std::string& name) {
  if (!d.data) return {};
  const Tensor t = read_descriptor(d, name, 2);
  expect_float(t);
  return t;
}

Filter::Filter(const BNNSLayerParametersMultiheadAttention& layer,
               const BNNSFilterParameters& options) {
  query = read_projection(layer.query, "query", false);
  key = read_projection(layer.key, "key", false);
  value = read_projection(layer.value, "value", false);
  output = read_projection(layer.output, "output", true);
  key_attn_bias = read_attention_bias(layer.key_attn_bias, "key_attn_bias");
  value_attn_bias = read_attention_bias(layer.value_attn_bias, "value_attn_bias");

  // Weights and targets say the sizes; everything else must agree.
  Dims& d = dims;
  d.d_model = query.weights.size[0];
  d.d_key = query.weights.size[1];
  d.heads = query.weights.size[2];
  d.k_dim = key.weights.size[0];
  d.v_dim = value.weights.size[0];
  d.d_value = value.weights.size[1];
  d.T = query.target.size[0];
  d.S = key.target.size[0];
  for (const Tensor* t : {&query.weights, &key.weights, &value.weights, &output.weights})
    expect_positive(*t);
  expect_shape(key.weights, {d.k_dim, d.d_key, d.heads});
  expect_shape(value.weights, {d.v_dim, d.d_value, d.heads});
  if (__int128(d.heads) * d.d_value > kMostTokens)
    refuse("value.weights.size", "fewer than 2^31 features of all heads",
           shape_text(value.weights.size, 3));
  expect_shape(output.weights, {d.heads * d.d_value, d.d_model});
  expect_shape(query.target, {d.T, d.d_model});
  expect_shape(key.target, {d.S, d.k_dim});
  expect_shape(value.target, {d.S, d.v_dim});
  expect_shape(output.target, {d.T, d.d_model});
  for (const Tensor* t : {&query.target, &key.target})
    if (t->size[0] > kMostTokens)
      refuse(t->name + ".size", "fewer than 2^31 tokens", shape_text(t->size, 2));
  if (query.bias) expect_shape(query.bias, {d.d_key, d.heads});
  if (key.bias) expect_shape(key.bias, {d.d_key, d.heads});
  if (value.bias) expect_shape(value.bias, {d.d_value, d.heads});
  if (output.bias) expect_shape(output.bias, {d.d_model});
  if (key_attn_bias) expect_shape(key_attn_bias, {d.d_key, d.heads});
  if (value_attn_bias) expect_shape(value_attn_bias, {d.d_value, d.heads});
  if (bool(key_attn_bias) != bool(value_attn_bias))
    refuse(key_attn_bias ? "value_attn_bias.data" : "key_attn_bias.data",
           "an address beside the other's (both or neither)", "NULL");
  for (const Tensor* t : {&query.weights, &key.weights, &value.weights, &output.weights})
    expect_data(*t);

  for (Projected* p : {&query, &key, &value}) {
    p->weights = by_head(p->weights);
    if (p->bias) p->bias = by_head(p->bias);
  }
  output.weights = output_by_head(output.weights, d.heads);
  if (key_attn_bias) key_attn_bias = by_head(key_attn_bias);
  if (value_attn_bias) value_attn_bias = by_head(value_attn_bias);

  zero_row = layer.add_zero_attn;
  dropout = layer.dropout > 0.0f && layer.dropout < 1.0f ? double(layer.dropout) : 0.0;
  seed = layer.seed;
  if (seed == 0 && dropout > 0) {
    std::random_device system;
    seed = uint64_t(system()) << 32 | system() | 1;
  }
  const size_t all = size_t(num_threads());
  threads = int(options.n_threads ? std::min(options.n_threads, all) : all);
  static std::atomic<uint64_t> filters{0};
  id = filters.fetch_add(1);
  allocator = {options.alloc_memory, options.free_memory};
  if (options.flags & ~uint32_t(BNNSFlagsUseClientPtr))
    refuse("filter_params.flags", "0 or BNNSFlagsUseClientPtr", std::to_string(options.flags));
  if (!(options.flags & BNNSFlagsUseClientPtr)) copy_weights();
}

Filter* Filter::create(const BNNSLayerParametersMultiheadAttention& layer,
                       const BNNSFilterParameters& options) {
  if (bool(options.alloc_memory) != bool(options.free_memory))
    refuse("filter_params", "both of alloc_memory and free_memory, or neither", "one of them");
  if (!options.alloc_memory) return new Filter(layer, options);
  void* memory = nullptr;
  if (options.alloc_memory(&memory, kAlign, sizeof(Filter)) != 0 || !memory) throw std::bad_alloc();
  try {
    return new (memory) Filter(layer, options);
  } catch (...) {
    options.free_memory(memory);
    throw;
  }
}

void Filter::destroy(Filter* filter) {
  const Allocator allocator = filter->allocator;
  if (!allocator.release) {
    delete filter;
    return;
  }
  filter->~Filter();
  allocator.release(filter);
}

void Filter::copy_weights() {
  // Whatever the client's layout: rows of features, those of the output (E, H, D).
  output.weights = output.weights.permuted(2, 0, 1);
  Tensor* const all[] = {&query.weights, &query.bias,     &key.weights,    &key.bias,
                         &value.weights, &value.bias,     &output.weights, &output.bias,
                         &key_attn_bias, &value_attn_bias};
  const auto copy = [&](Arena& arena, bool real) {
    for (Tensor* t : all) {
      if (!*t) continue;
      void* const to = take(arena, *t);
      if (!real) continue;
      copy_elements(*t, to);
      *t = t->contiguous(to);
    }
  };
  Arena none;
  copy(none, false);
  copies = Block64(none.used(), allocator);
  Arena arena(copies);
  copy(arena, true);
  output.weights = output.weights.permuted(1, 2, 0);
}

}  // namespace multihead::bnns
