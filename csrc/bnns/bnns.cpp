// Face: Apple's C functions. Exceptions stop here and become -1 (or NULL) and a reason.
#include <multihead/bnns.h>

#include <string>

#include "../engine/thread_pool.h"
#include "../faces/guarded.h"
#include "../platform/other_names.h"
#include "apply.h"

namespace {

using namespace multihead;
using namespace multihead::bnns;

// Has room before it is needed: a reason must not fail to be kept.
thread_local std::string t_error;

void remember(const char* function, const char* why) noexcept {
  try {
    t_error = std::string(function) + ": " + why;
  } catch (...) {
    t_error.clear();
  }
}

template <class F>
int guarded(const char* function, F f) noexcept {
  const faces::Outcome outcome = faces::guarded(f);
  t_error.clear();
  if (outcome.status == faces::Status::Done) return 0;
  remember(function, outcome.why);
  return -1;
}

Filter& filter_of(BNNSFilter handle) {
  Filter* const filter = static_cast<Filter*>(handle);
  if (!filter) refuse("F", "a filter", "NULL");
  if (filter->magic != Filter::kMagic)
    refuse("F", "a multi-head attention filter", "something else");
  return *filter;
}

}  // namespace

BNNSFilter BNNSFilterCreateLayerMultiheadAttention(
    const BNNSLayerParametersMultiheadAttention* layer_params,
    const BNNSFilterParameters* filter_params) {
  Filter* made = nullptr;
  guarded("BNNSFilterCreateLayerMultiheadAttention", [&] {
    if (!layer_params) refuse("layer_params", "an address", "NULL");
    const BNNSFilterParameters none{};
    made = Filter::create(*layer_params, filter_params ? *filter_params : none);
  });
  return made;
}

void BNNSFilterDestroy(BNNSFilter filter) {
  if (filter) guarded("BNNSFilterDestroy", [&] { Filter::destroy(&filter_of(filter)); });
}

int BNNSApplyMultiheadAttention(BNNSFilter F, size_t batch_size, const void* query,
                                size_t query_stride, const void* key, size_t key_stride,
                                const BNNSNDArrayDescriptor* key_mask, size_t key_mask_stride,
                                const void* value, size_t value_stride, void* output,
                                size_t output_stride, const BNNSNDArrayDescriptor* add_to_attention,
                                size_t* backprop_cache_size, void* backprop_cache,
                                size_t* workspace_size, void* workspace) {
  return guarded("BNNSApplyMultiheadAttention", [&] {
    apply_forward(
        filter_of(F),
        {batch_size, query, query_stride, key, key_stride, key_mask, key_mask_stride, value,
         value_stride, add_to_attention},
        {output, output_stride, backprop_cache_size, backprop_cache, workspace_size, workspace});
  });
}

int BNNSApplyMultiheadAttentionBackward(
    BNNSFilter F, size_t batch_size, const void* query, size_t query_stride,
    BNNSMHAProjectionParameters* query_param_delta, const void* key, size_t key_stride,
    const BNNSNDArrayDescriptor* key_mask, size_t key_mask_stride,
    BNNSMHAProjectionParameters* key_param_delta, const void* value, size_t value_stride,
    BNNSMHAProjectionParameters* value_param_delta, const BNNSNDArrayDescriptor* add_to_attention,
    BNNSNDArrayDescriptor* key_attn_bias_delta, BNNSNDArrayDescriptor* value_attn_bias_delta,
    const void*, size_t, BNNSMHAProjectionParameters* output_param_delta,
    size_t backprop_cache_size, void* backprop_cache, size_t* workspace_size, void* workspace) {
  return guarded("BNNSApplyMultiheadAttentionBackward", [&] {
    apply_backward(filter_of(F),
                   {batch_size, query, query_stride, key, key_stride, key_mask, key_mask_stride,
                    value, value_stride, add_to_attention},
                   {query_param_delta, key_param_delta, value_param_delta, output_param_delta,
                    key_attn_bias_delta, value_attn_bias_delta, backprop_cache_size, backprop_cache,
                    workspace_size, workspace});
  });
}

// For programs that were compiled against Apple's header; those against ours ask for multihead_*.
#define MULTIHEAD_APPLE_S(name) MULTIHEAD_ALSO_NAMED(multihead_##name, name)
extern "C" {
MULTIHEAD_APPLE_S(BNNSFilterCreateLayerMultiheadAttention)
MULTIHEAD_APPLE_S(BNNSFilterDestroy)
MULTIHEAD_APPLE_S(BNNSApplyMultiheadAttention)
MULTIHEAD_APPLE_S(BNNSApplyMultiheadAttentionBackward)
}

const char* multihead_last_error(void) { return t_error.c_str(); }

void multihead_set_num_threads(int threads) {
  guarded("multihead_set_num_threads", [&] { set_num_threads(threads); });
}

int multihead_get_num_threads(void) {
  int threads = -1;
  guarded("multihead_get_num_threads", [&] { threads = num_threads(); });
  return threads;
}
