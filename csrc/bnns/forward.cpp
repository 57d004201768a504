// Forward: nothing is written before everything is checked.
#include <cstring>

#include "call.h"

namespace multihead::bnns {

void apply_forward(Filter& f, const ApplyArguments& a, const ForwardArguments& to) {
  CallTensors call(f);
  read_call(call, a);
  Tensor output = read_batch(f.output.target, "output", call.batch, to.output_stride, to.output);
  output.adds = false;  // flags count in gradients alone
  expect_no_overlap_inside(output, "output_stride");

  // Sizes.
  Arena count;
  Staging counting(count, false);
  const LayerCall shape = layer_call(call, 0, counting);
  counting.output(output);
  const bool asks_cache = to.cache_size && !to.cache,
             asks_workspace = to.workspace_size && !to.workspace;
  const bool keeps = to.cache && to.cache_size && *to.cache_size > 0;
  const size_t of_cache = cache_size(shape);
  const size_t of_workspace = forward_bytes(without_mask(shape), keeps || asks_cache) + kAlign;
  if (asks_cache) *to.cache_size = of_cache;
  if (asks_workspace) *to.workspace_size = of_workspace;
  if (asks_cache || asks_workspace) return;

  // Everything that could be wrong.
  need(call.query, "it is an input");
  need(call.key, "it is an input");
  need(call.value, "it is an input");
  need(output, "it is the output");
  if (to.cache && !to.cache_size)
    refuse("backprop_cache_size", "the size of backprop_cache", "NULL");
  if (to.workspace && !to.workspace_size) refuse("workspace_size", "the size of workspace", "NULL");
  if (keeps) expect_room("backprop_cache_size", *to.cache_size, of_cache);
  if (to.workspace) expect_room("workspace_size", *to.workspace_size, of_workspace);
  const Tensor cache = bytes_at("backprop_cache", keeps ? to.cache : nullptr, of_cache);
  const Tensor workspace = bytes_at("workspace", to.workspace, of_workspace);
  const bool in_place = same_memory(output, call.query);
  for (const Tensor* t : call.inputs()) {
    const bool is_data = t == &call.query || t == &call.key || t == &call.value;
    if (!(in_place && is_data && same_memory(output, *t))) expect_apart(output, *t);
    expect_apart(cache, *t);
    expect_apart(workspace, *t);
  }
  expect_apart(output, cache);
  expect_apart(output, workspace);
  expect_apart(cache, workspace);
  if (call.batch == 0) return;

  // The call.
  const Block64 staged(count.used(), f.allocator);
  const Workspace memory(to.workspace, of_workspace, f.allocator);
  const uint64_t counter = f.dropout > 0 ? f.calls.fetch_add(1) : 0;
  Arena arena(staged);
  Staging staging(arena, true);
  LayerCall l = layer_call(call, counter, staging);
  const View out = staging.output(output);
  l.resources.workspace = memory.at;
  char* const cache_at = static_cast<char*>(to.cache);
  char* const kept = keeps ? align_up(cache_at + sizeof(CacheHeader)) : nullptr;
  CacheHeader header{};
  if (keeps)
    header = {kCacheMagic,
              f.id,
              counter,
              uint64_t(call.batch),
              cache_bytes(l),
              mask_hash(call.key_mask),
              uint64_t(kept - cache_at)};
  l.resources.ready = [&] {
    f.last_call = counter;
    if (keeps) std::memcpy(to.cache, &header, sizeof header);
  };
  const auto at_kept = [&](size_t) { return kept; };
  layer_forward(l, out, {}, keeps ? CacheMemory(at_kept) : CacheMemory());
  staging.finish();
}

}  // namespace multihead::bnns
