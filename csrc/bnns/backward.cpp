// Backward: nothing is written before everything is checked.
#include <algorithm>
#include <cstring>

#include "call.h"

namespace multihead::bnns {
namespace {

// The gradients of one projection that are wanted.
struct Deltas {
  Tensor target, weights, bias;
};

Deltas read_deltas(const BNNSMHAProjectionParameters* p, const std::string& name,
                   const Projected& of, int64_t batch) {
  Deltas d;
  if (!p) return d;
  if (p->target_desc.data) {
    const Tensor target = read_descriptor(p->target_desc, name + ".target_desc", 2);
    expect_float(target);
    expect_shape(target, {of.target.size[0], of.target.size[1]});
    d.target =
        read_batch(target, name + ".target_desc", batch, p->target_desc.stride[2], target.data);
    d.target.adds = target.adds;
  }
  const Tensor& w = of.weights;  // (H, D, features)
  if (p->weights.data) {
    d.weights = read_descriptor(p->weights, name + ".weights", 3);
    expect_float(d.weights);
    expect_shape(d.weights, {w.size[2], w.size[1], w.size[0]});
    d.weights = d.weights.permuted(2, 1, 0);
  }
  if (p->bias.data) {
    d.bias = read_descriptor(p->bias, name + ".bias", 2);
    expect_float(d.bias);
    expect_shape(d.bias, {w.size[1], w.size[0]});
    d.bias = d.bias.permuted(1, 0);
    if (!of.bias) refuse(d.bias.name + ".data", "NULL: the layer has no such bias", "an address");
  }
  return d;
}

Deltas read_output_deltas(const BNNSMHAProjectionParameters* p, const Filter& f, int64_t batch) {
  const std::string name = "output_param_delta";
  if (!p) refuse(name, "the gradient of the output in target_desc", "NULL");
  Deltas d;
  const Dims& dims = f.dims;
  d.target = read_descriptor(p->target_desc, name + ".target_desc", 2);
  expect_float(d.target);
  expect_shape(d.target, {dims.T, dims.d_model});
  d.target = read_batch(d.target, name + ".target_desc", batch, p->target_desc.stride[2],
                        p->target_desc.data);
  if (p->weights.data) {
    Tensor w = read_descriptor(p->weights, name + ".weights", 2);
    expect_float(w);
    expect_shape(w, {dims.heads * dims.d_value, dims.d_model});
    d.weights = w;
    d.weights.rank = 3;
    d.weights.size[0] = dims.heads, d.weights.size[1] = dims.d_value, d.weights.size[2] = w.size[1];
    d.weights.stride[0] = w.stride[0] * dims.d_value, d.weights.stride[1] = w.stride[0];
    d.weights.stride[2] = w.stride[1];
  }
  if (p->bias.data) {
    d.bias = read_descriptor(p->bias, name + ".bias", 1);
    expect_float(d.bias);
    expect_shape(d.bias, {dims.d_model});
    if (!f.output.bias)
      refuse(d.bias.name + ".data", "NULL: the layer has no such bias", "an address");
  }
  return d;
}

Tensor read_attention_delta(const BNNSNDArrayDescriptor* d, const std::string& name,
                            const Tensor& of, int64_t dim, int64_t heads) {
  if (!d || !d->data) return {};
  const Tensor t = read_attention_bias(*d, name);
  expect_shape(t, {dim, heads});
  if (!of) refuse(name + ".data", "NULL: the layer has no such bias", "an address");
  return t.permuted(1, 0);
}

// Everything that backward writes.
struct Gradients {
  Deltas query, key, value, output;
  Tensor key_attn_bias, value_attn_bias;

  std::vector<const Tensor*> targets() const { return {&query.target, &key.target, &value.target}; }
  std::vector<const Tensor*> sums() const {
    return {&query.weights, &query.bias,     &key.weights, &key.bias,      &value.weights,
            &value.bias,    &output.weights, &output.bias, &key_attn_bias, &value_attn_bias};
  }
};

void expect_apart(const Gradients& g, const CallTensors& call, const Tensor& workspace,
                  const Tensor& cache) {
  std::vector<const Tensor*> written = g.targets();
  const size_t targets = written.size();
  for (const Tensor* t : g.sums()) written.push_back(t);
  std::vector<const Tensor*> read = call.inputs();
  for (const Tensor* t : {&g.output.target, &workspace, &cache}) read.push_back(t);
  for (size_t i = 0; i < written.size(); ++i) {
    const Tensor& t = *written[i];
    expect_no_overlap_inside(t, t.name + ".stride");
    for (const Tensor* other : read) expect_apart(t, *other);
    for (size_t j = 0; j < i; ++j) {
      const Tensor& other = *written[j];
      if (!t || !other) continue;
      if (i < targets && same_memory(t, other)) {  // receives the sum
        if (t.adds != other.adds)
          refuse(t.name + ".flags", "those of " + other.name + ", the same memory", "others");
      } else {
        expect_apart(t, other);
      }
    }
  }
  for (const Tensor* t : read)
    if (t != &workspace) expect_apart(workspace, *t);
}

LayerGradients layer_gradients(const Gradients& g, Staging& staging) {
  LayerGradients d;
  const auto target = [&](const Tensor& t, bool* adds) {
    int given = 0;
    for (const Tensor* other : g.targets()) given += *other && same_memory(t, *other);
    return staging.target(t, given > 1, adds);
  };
  d.query = target(g.query.target, &d.query_adds);
  d.key = target(g.key.target, &d.key_adds);
  d.value = target(g.value.target, &d.value_adds);
  Parameters& p = d.parameters;
  p.query = {staging.sum(g.query.weights), staging.sum(g.query.bias)};
  p.key = {staging.sum(g.key.weights), staging.sum(g.key.bias)};
  p.value = {staging.sum(g.value.weights), staging.sum(g.value.bias)};
  p.out = {staging.sum(g.output.weights), staging.sum(g.output.bias)};
  p.bias_k = staging.sum(g.key_attn_bias);
  p.bias_v = staging.sum(g.value_attn_bias);
  return d;
}

}  // namespace

void apply_backward(Filter& f, const ApplyArguments& a, const BackwardArguments& to) {
  CallTensors call(f);
  read_call(call, a);
  Gradients g;
  g.query = read_deltas(to.query_delta, "query_param_delta", f.query, call.batch);
  g.key = read_deltas(to.key_delta, "key_param_delta", f.key, call.batch);
  g.value = read_deltas(to.value_delta, "value_param_delta", f.value, call.batch);
  g.output = read_output_deltas(to.output_delta, f, call.batch);
  g.key_attn_bias = read_attention_delta(to.key_attn_bias_delta, "key_attn_bias_delta",
                                         f.key_attn_bias, f.dims.d_key, f.dims.heads);
  g.value_attn_bias = read_attention_delta(to.value_attn_bias_delta, "value_attn_bias_delta",
                                           f.value_attn_bias, f.dims.d_value, f.dims.heads);
  const bool cached = to.cache && to.cache_size > 0;

  // Sizes: staged arrays, the engine's memory, and without a cache one of our own.
  Arena count;
  Staging counting(count, false);
  const LayerCall shape = layer_call(call, 0, counting);
  counting.input(g.output.target);
  layer_gradients(g, counting);
  const size_t own_cache = cached ? 0 : align_up(cache_bytes(without_mask(shape)));
  size_t of_engine = backward_bytes(without_mask(shape));
  if (!cached) of_engine = std::max(of_engine, forward_bytes(without_mask(shape), true));
  const size_t of_workspace = own_cache + of_engine + kAlign;
  if (to.workspace_size && !to.workspace) {
    *to.workspace_size = of_workspace;
    return;
  }

  // Everything that could be wrong.
  need(g.output.target, "it is the gradient of the output");
  if (to.workspace && !to.workspace_size) refuse("workspace_size", "the size of workspace", "NULL");
  if (to.workspace) expect_room("workspace_size", *to.workspace_size, of_workspace);
  const size_t of_cache = cache_size(shape);
  if (cached) expect_room("backprop_cache_size", to.cache_size, of_cache);
  const struct {
    const Tensor& input;
    const Tensor& weights;
  } pairs[] = {
      {call.query, g.query.weights}, {call.key, g.key.weights}, {call.value, g.value.weights}};
  for (const auto& pair : pairs) {
    if (!cached) need(pair.input, "there is no backprop_cache");
    if (pair.weights) need(pair.input, "the gradient of its weights is wanted");
  }
  const Tensor cache = bytes_at("backprop_cache", cached ? to.cache : nullptr, of_cache);
  const Tensor workspace = bytes_at("workspace", to.workspace, of_workspace);
  expect_apart(g, call, workspace, cache);
  CacheHeader header{kCacheMagic, f.id, f.last_call, uint64_t(call.batch), 0, 0, 0};
  if (cached && call.batch > 0) {
    std::memcpy(&header, to.cache, sizeof header);
    const std::string expected = "what a forward of this filter left, with this batch and key mask";
    if (header.magic != kCacheMagic) refuse("backprop_cache", expected, "something else");
    if (header.filter != f.id || header.batch != uint64_t(call.batch) ||
        header.shift > sizeof header + kAlign || header.shift < sizeof header ||
        header.mask != mask_hash(call.key_mask) || header.bytes != cache_bytes(shape))
      refuse("backprop_cache", expected, "that of another call");
  }

  // The call.
  const Block64 staged(count.used(), f.allocator);
  const Workspace memory(to.workspace, of_workspace, f.allocator);
  Arena arena(staged);
  Staging staging(arena, true);
  LayerCall l = layer_call(call, header.counter, staging);
  const View d_out = staging.input(g.output.target);
  const LayerGradients d = layer_gradients(g, staging);
  if (call.batch == 0) {
    staging.begin_sums();
  } else {
    l.resources.workspace = memory.at + own_cache;
    char* kept = memory.at;
    Block64 moved;  // a cache that was copied to where it is aligned otherwise
    if (cached) {
      kept = static_cast<char*>(const_cast<void*>(to.cache)) + header.shift;
      if (header.bytes > 0 && reinterpret_cast<uintptr_t>(kept) % kAlign != 0) {
        moved = Block64(header.bytes, f.allocator);
        std::memcpy(moved.data(), kept, header.bytes);
        kept = static_cast<char*>(moved.data());
      }
    } else {
      layer_forward(l, {}, {}, [&](size_t) { return kept; });
    }
    l.resources.ready = [&] { staging.begin_sums(); };
    layer_backward(l, [&](size_t) { return kept; }, d_out, {}, d);
  }
  staging.finish();
}

}  // namespace multihead::bnns
