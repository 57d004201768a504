// The private table through which faces outside libmultihead reach the engine. Versioned: both
// sides are built together, and a mismatch is refused.
#pragma once

#include "engine/functional.h"
#include "engine/layer.h"
#include "engine/thread_pool.h"
#include "platform/compiler.h"

namespace multihead {

constexpr int kTableVersion = 4;

// Functions return null, or why they failed: a string of the calling thread's.
struct EngineTable {
  int version;
  const char* (*cache_bytes)(const LayerCall& call, size_t* bytes);
  const char* (*layer_forward)(const LayerCall& call, const View& out, const WeightsView& weights,
                               void* cache);
  const char* (*layer_backward)(const LayerCall& call, const void* cache, const View& d_out,
                                const WeightsView& d_weights, const LayerGradients& gradients);
  const char* (*attention_forward)(const AttentionCall& call, const View& out, const View& stats,
                                   const WeightsView& weights);
  const char* (*attention_backward)(const AttentionCall& call, const View& stats, const View& delta,
                                    const View& d_out, const AttentionGradients& gradients);
  const char* (*row_dot)(const View& a, const View& b, const View& result);
  const char* (*block_create)(size_t bytes, void** block, void** data);
  void (*block_destroy)(void* block);
  const char* (*isa)(const char** name);           // of the kernels in use
  int (*available)(const char** names, int most);  // returns how many there are
  int (*num_threads)();
  void (*set_num_threads)(int threads);
  const char* (*set_thread_source)(const ThreadSource* source);  // which is never destroyed
  const char* (*fma_peak)(double seconds, int threads, bool f64, double* flops_per_second);
  const char* (*region_seconds)(int iterations, double* seconds);
};

}  // namespace multihead

extern "C" MULTIHEAD_EXPORT const multihead::EngineTable* multihead_private_table();
