/* Trains one attention layer through the BNNS API to average what each query asks for, and prints
 * the falling loss. Build and run it where multihead is installed:
 *
 *   cc bnns_train.c $(python -m multihead config --cflags --libs) -lm -o bnns_train && ./bnns_train
 */
#include <math.h>
#include <multihead/bnns.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kBatch = 16, kTokens = 12, kModel = 8, kHeads = 2, kDim = 4, kSteps = 200 };
enum { kTarget = kTokens * kModel, kWeights = kModel * kDim * kHeads };

static float normal(void) { /* by the sum of twelve */
  float x = -6.0f;
  for (int i = 0; i < 12; ++i) x += (float)rand() / (float)RAND_MAX;
  return x;
}

static BNNSNDArrayDescriptor describe(BNNSDataLayout layout, void* data, size_t a, size_t b,
                                      size_t c) {
  BNNSNDArrayDescriptor d;
  memset(&d, 0, sizeof d);
  d.layout = layout;
  d.size[0] = a;
  d.size[1] = b;
  d.size[2] = c;
  d.data = data;
  d.data_type = BNNSDataTypeFloat32;
  return d;
}

/* weights: the projection's, or NULL for no gradient; target: what gets the input's gradient. */
static BNNSMHAProjectionParameters describe_projection(float* target, float* weights,
                                                       int is_output) {
  BNNSMHAProjectionParameters p;
  memset(&p, 0, sizeof p);
  p.target_desc = describe(BNNSDataLayoutRowMajorMatrix, target, kModel, kTokens, 0);
  p.target_desc.stride[2] = kTarget; /* from one sequence to the next */
  p.weights = is_output ? describe(BNNSDataLayout2DLastMajor, weights, kDim * kHeads, kModel, 0)
                        : describe(BNNSDataLayout3DLastMajor, weights, kModel, kDim, kHeads);
  return p;
}

int main(void) {
  static float x[kBatch * kTarget], wanted[kBatch * kTarget], out[kBatch * kTarget],
      d_out[kBatch * kTarget], weights[4][kWeights], grads[4][kWeights];
  srand(1);
  for (int i = 0; i < kBatch * kTarget; ++i) x[i] = normal();
  for (int w = 0; w < 4; ++w)
    for (int i = 0; i < kWeights; ++i) weights[w][i] = normal() / sqrtf(kModel);
  /* The answer: the mean of the sequence, with signs turned in one half of the features. */
  for (int n = 0; n < kBatch; ++n)
    for (int e = 0; e < kModel; ++e) {
      float mean = 0;
      for (int t = 0; t < kTokens; ++t) mean += x[n * kTarget + t * kModel + e] / kTokens;
      for (int t = 0; t < kTokens; ++t)
        wanted[n * kTarget + t * kModel + e] = e < kModel / 2 ? mean : -mean;
    }

  BNNSLayerParametersMultiheadAttention layer;
  memset(&layer, 0, sizeof layer);
  layer.query = describe_projection(NULL, weights[0], 0);
  layer.key = describe_projection(NULL, weights[1], 0);
  layer.value = describe_projection(NULL, weights[2], 0);
  layer.output = describe_projection(NULL, weights[3], 1);
  BNNSFilterParameters options;
  memset(&options, 0, sizeof options);
  options.flags = BNNSFlagsUseClientPtr; /* the filter sees our steps */
  BNNSFilter filter = BNNSFilterCreateLayerMultiheadAttention(&layer, &options);
  if (!filter) return fprintf(stderr, "%s\n", multihead_last_error()), 1;

  size_t cache_size = 0;
  if (BNNSApplyMultiheadAttention(filter, kBatch, NULL, kTarget, NULL, kTarget, NULL, 0, NULL,
                                  kTarget, NULL, kTarget, NULL, &cache_size, NULL, NULL, NULL))
    return fprintf(stderr, "%s\n", multihead_last_error()), 1;
  void* cache = malloc(cache_size);

  for (int step = 0; step <= kSteps; ++step) {
    if (BNNSApplyMultiheadAttention(filter, kBatch, x, kTarget, x, kTarget, NULL, 0, x, kTarget,
                                    out, kTarget, NULL, &cache_size, cache, NULL, NULL))
      return fprintf(stderr, "%s\n", multihead_last_error()), 1;
    double loss = 0;
    for (int i = 0; i < kBatch * kTarget; ++i) {
      const float error = out[i] - wanted[i];
      loss += error * error / (kBatch * kTarget);
      d_out[i] = 2 * error / (kBatch * kTarget);
    }
    if (step % 40 == 0) printf("step %3d  loss %.5f\n", step, loss);
    BNNSMHAProjectionParameters d_query = describe_projection(NULL, grads[0], 0),
                                d_key = describe_projection(NULL, grads[1], 0),
                                d_value = describe_projection(NULL, grads[2], 0),
                                d_output = describe_projection(d_out, grads[3], 1);
    if (BNNSApplyMultiheadAttentionBackward(filter, kBatch, x, kTarget, &d_query, x, kTarget, NULL,
                                            0, &d_key, x, kTarget, &d_value, NULL, NULL, NULL, NULL,
                                            0, &d_output, cache_size, cache, NULL, NULL))
      return fprintf(stderr, "%s\n", multihead_last_error()), 1;
    for (int w = 0; w < 4; ++w)
      for (int i = 0; i < kWeights; ++i) weights[w][i] -= 1.5f * grads[w][i];
  }
  free(cache);
  BNNSFilterDestroy(filter);
  return 0;
}
