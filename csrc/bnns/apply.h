// Forward and backward of a filter, with the C functions' parameters in groups.
#pragma once

#include "filter.h"

namespace multihead::bnns {

struct ApplyArguments {
  size_t batch_size;
  const void* query;
  size_t query_stride;
  const void* key;
  size_t key_stride;
  const BNNSNDArrayDescriptor* key_mask;
  size_t key_mask_stride;
  const void* value;
  size_t value_stride;
  const BNNSNDArrayDescriptor* add_to_attention;
};

struct ForwardArguments {
  void* output;
  size_t output_stride;
  size_t* cache_size;
  void* cache;
  size_t* workspace_size;
  void* workspace;
};

struct BackwardArguments {
  const BNNSMHAProjectionParameters *query_delta, *key_delta, *value_delta, *output_delta;
  const BNNSNDArrayDescriptor *key_attn_bias_delta, *value_attn_bias_delta;
  size_t cache_size;
  const void* cache;
  size_t* workspace_size;
  void* workspace;
};

// Both throw Refused before they write anything, or std::bad_alloc.
void apply_forward(Filter& filter, const ApplyArguments& arguments, const ForwardArguments& to);
void apply_backward(Filter& filter, const ApplyArguments& arguments, const BackwardArguments& to);

}  // namespace multihead::bnns
