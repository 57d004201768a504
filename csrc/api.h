// The private table through which faces outside libmultihead reach the engine. Versioned: both
// sides are built together, and a mismatch is refused.
#pragma once

#include "engine/interruption.h"
#include "engine/layer.h"
#include "engine/lent_threads.h"
#include "engine/partial.h"
#include "engine/thread_pool.h"
#include "faces/arguments.h"
#include "faces/guarded.h"
#include "platform/compiler.h"

namespace multihead {

constexpr int kTableVersion = 14;

struct EngineTable {
  int version;

  faces::Outcome (*layer_forward)(const faces::LayerArguments& arguments,
                                  const faces::LayerResults& results, const CacheMemory& cache);
  faces::Outcome (*layer_backward)(const faces::LayerArguments& arguments, const CacheMemory& cache,
                                   const faces::LayerResults& d_results,
                                   const faces::LayerTensors& gradients);
  // Of what layer_forward asks `cache` for, with the kernels in use.
  faces::Outcome (*layer_cache_bytes)(const AttentionSpec& spec, size_t* bytes);
  // `results.weights` has as many columns as the longest sequence has keys afterwards.
  faces::Outcome (*cached_forward)(const faces::LayerArguments& arguments,
                                   const faces::CachedKeys& cache,
                                   const faces::LayerResults& results);
  faces::Outcome (*attention_forward)(const faces::AttentionArguments& arguments,
                                      const faces::AttentionResults& results);
  // delta (N, H, L) = rowsum(d_out * out); d_results: out's gradient, and the forward's stats
  faces::Outcome (*attention_backward)(const faces::AttentionArguments& arguments,
                                       const faces::AttentionResults& d_results, const View& delta,
                                       const faces::AttentionTensors& gradients);
  faces::Outcome (*row_dot)(const View& a, const View& b, const View& result);
  faces::Outcome (*merge_attention)(const MergeCall& call);

  void (*set_poll)(Poll poll);                         // see interruption.h
  void (*borrow_threads)(const LentThreads* threads);  // see lent_threads.h

  // Memory of the engine's, for caches.
  faces::Outcome (*block_create)(size_t bytes, void** block, void** data);
  void (*block_destroy)(void* block);

  faces::Outcome (*kernels_in_use)(const char** name);
  faces::Outcome (*use_kernels)(const char* name);
  faces::Outcome (*add_kernels)(const KernelSet* set);  // one that lives as long as the process
  int (*available)(const char** names, int most);       // returns how many there are

  int (*num_threads)();
  void (*set_num_threads)(int threads);
  void (*set_little)(int64_t multiplications);
  faces::Outcome (*set_thread_source)(const ThreadSource* source);  // which is never destroyed
};

}  // namespace multihead

extern "C" MULTIHEAD_EXPORT const multihead::EngineTable* multihead_private_table();
