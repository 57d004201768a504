// A filter: what create was told, checked, and its weights.
#pragma once

#include <atomic>

#include "../engine/arena.h"
#include "tensor.h"

namespace multihead::bnns {

// The tensors of one projection as the engine's axes have them: weights (H, D, in), bias (H, D);
// of the output (H, D, E) and (E). Data may be null in gradients.
struct Projected {
  Tensor target;  // tokens x features, without data
  Tensor weights, bias;
};

struct Dims {
  int64_t T = 0, S = 0, d_model = 0, k_dim = 0, v_dim = 0, heads = 0, d_key = 0, d_value = 0;
};

struct Filter {
  static constexpr uint64_t kMagic = 0x6D68612D66696C74ull;

  uint64_t magic = kMagic;
  Dims dims;
  Projected query, key, value, output;
  Tensor key_attn_bias, value_attn_bias;  // (H, D)
  bool zero_row = false;
  double dropout = 0;
  uint64_t seed = 0;
  uint64_t id = 0;                               // another for every filter
  std::atomic<uint64_t> calls{0}, last_call{0};  // dropout's counter: the next, the last forward's
  int threads = 0;
  Allocator allocator;
  Block64 copies;  // of the weights, unless they are the client's

  // In the client's memory if it has functions for that; throws Refused or std::bad_alloc.
  static Filter* create(const BNNSLayerParametersMultiheadAttention& layer,
                        const BNNSFilterParameters& options);
  static void destroy(Filter* filter);

 private:
  Filter(const BNNSLayerParametersMultiheadAttention& layer, const BNNSFilterParameters& options);
  ~Filter() { magic = 0; }
  void copy_weights();
};

// A projection's descriptors, or its gradients' where `of` says what shapes they must have.
// Parts that are not there, or have no data where `optional`, have rank 0.
Projected read_projection(const BNNSMHAProjectionParameters& p, const std::string& name,
                          bool is_output);
Tensor read_attention_bias(const BNNSNDArrayDescriptor& d, const std::string& name);

}  // namespace multihead::bnns
