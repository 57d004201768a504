#include "api.h"

#include <algorithm>

#include "engine/kernel_sets.h"
#include "faces/checks.h"

namespace multihead {
namespace {

using namespace faces;

// For what there was no memory: the shapes that decide how much a call needs.
template <class Tensors>
std::string shapes_of(const Tensors& t) {
  std::string said;
  const auto add = [&](const char* name, const View& v) {
    if (v) said += (said.empty() ? " for " : ", ") + (name + (" " + text(v.size, v.rank)));
  };
  add("query", t.query);
  add("key", t.key);
  add("value", t.value);
  add("mask", t.mask);
  return said;
}

// A call of the engine, with its arguments' tensors.
template <class Arguments, class F>
Outcome guarded_call(const Arguments& arguments, F f) noexcept {
  return guarded(f, [&] { return shapes_of(arguments.tensors); });
}

const EngineTable kTable = {
    .version = kTableVersion,
    .layer_forward =
        [](const LayerArguments& arguments, const LayerResults& results, const CacheMemory& cache) {
          return guarded_call(arguments, [&] {
            const LayerCall call = layer_call(arguments);
            layer_forward(call, layer_out(arguments, call, results.out),
                          layer_weights(arguments, call, results.weights), cache);
          });
        },
    .layer_backward =
        [](const LayerArguments& arguments, const CacheMemory& cache, const LayerResults& d_results,
           const LayerTensors& gradients) {
          return guarded_call(arguments, [&] {
            const LayerCall call = layer_call(arguments);
            layer_backward(call, cache, layer_out(arguments, call, d_results.out),
                           layer_weights(arguments, call, d_results.weights),
                           layer_gradients(arguments, call, gradients));
          });
        },
    .layer_cache_bytes =
        [](const AttentionSpec& spec, size_t* bytes) {
          return guarded([&] {
            check_sizes(spec);
            LayerCall call;
            call.attention = spec;
            *bytes = cache_bytes(call);
          });
        },
    .cached_forward =
        [](const LayerArguments& arguments, const CachedKeys& cache, const LayerResults& results) {
          return guarded_call(arguments, [&] {
            std::vector<int64_t> lengths;
            const CachedCall call = cached_call(arguments, cache, lengths);
            cached_forward(call, layer_out(arguments, call.layer, results.out),
                           layer_weights(arguments, call.layer, results.weights));
          });
        },
    .attention_forward =
        [](const AttentionArguments& arguments, const AttentionResults& results) {
          return guarded_call(arguments, [&] {
            const AttentionCall call = attention_call(arguments);
            const AttentionResults to = attention_results(call, results);
            const WeightsView weights{to.weights, to.weights ? call.attention.heads.count : 0};
            attention_forward(call, to.out, to.stats, weights);
          });
        },
    .attention_backward =
        [](const AttentionArguments& arguments, const AttentionResults& d_results,
           const View& delta, const AttentionTensors& gradients) {
          return guarded_call(arguments, [&] {
            const AttentionCall call = attention_call(arguments);
            const AttentionResults from = attention_results(call, d_results);
            const AttentionGradients to = attention_gradients(call, gradients);
            attention_backward(call, from.stats, attention_delta(call, delta), from.out, to);
          });
        },
    .row_dot =
        [](const View& a, const View& b, const View& result) {
          return guarded([&] {
            const RowDot rows = faces::row_dot({a, b, result});
            multihead::row_dot(rows.a, rows.b, rows.result);
          });
        },
    .merge_attention =
        [](const MergeCall& call) {
          return guarded([&] { merge_attention(kernels_in_use(), call); });
        },
    .set_poll = [](Poll poll) { set_poll(poll); },
    .borrow_threads = [](const LentThreads* threads) { borrow_threads(threads); },
    .block_create =
        [](size_t bytes, void** block, void** data) {
          return guarded([&] {
            Block64* made = new Block64(bytes);
            *block = made;
            *data = made->data();
          });
        },
    .block_destroy = [](void* block) { delete static_cast<Block64*>(block); },
    .kernels_in_use =
        [](const char** name) { return guarded([&] { *name = kernels_in_use().name; }); },
    .use_kernels = [](const char* name) { return guarded([&] { use_kernels(name); }); },
    .add_kernels = [](const KernelSet* set) { return guarded([&] { add_kernels(set); }); },
    .available =
        [](const char** names, int most) {
          const std::vector<const KernelSet*> sets = available_kernels();
          for (int i = 0; i < std::min(most, int(sets.size())); ++i)
            names[i] = sets[size_t(i)]->name;
          return int(sets.size());
        },
    .num_threads = [] { return num_threads(); },
    .set_num_threads = [](int threads) { set_num_threads(threads); },
    .set_little = [](int64_t multiplications) { set_little(multiplications); },
    .set_thread_source =
        [](const ThreadSource* source) { return guarded([&] { set_thread_source(source); }); },
};

}  // namespace
}  // namespace multihead

const multihead::EngineTable* multihead_private_table() { return &multihead::kTable; }
