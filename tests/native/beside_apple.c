/* One program that calls Apple's functions and ours, as C99 and C++17. A test makes <accelerate.h>
 * of our header's own declarations, under their plain names, and the functions below of it. */
#ifdef OURS_FIRST
#include <multihead/bnns.h>
/* Apple's names behind it */
#include <accelerate.h>
#else
#include <accelerate.h>
/* and ours behind Apple's */
#include <multihead/bnns.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static void call_apple_s(void) {
  BNNSLayerParametersMultiheadAttention layer;
  BNNSNDArrayDescriptor* none = NULL;
  BNNSFilter filter;
  memset(&layer, 0, sizeof layer);
  layer.query.weights.data_type = BNNSDataTypeFloat32;
  layer.query.weights.layout = BNNSDataLayout3DLastMajor;
  filter = BNNSFilterCreateLayerMultiheadAttention(&layer, NULL);
  expect(filter == (BNNSFilter)&apple_s_filter, "create is not Apple's");
  expect(BNNSApplyMultiheadAttention(filter, 1, NULL, 0, NULL, 0, none, 0, NULL, 0, NULL, 0, none,
                                     NULL, NULL, NULL, NULL) == 11,
         "apply is not Apple's");
  expect(BNNSApplyMultiheadAttentionBackward(filter, 1, NULL, 0, NULL, NULL, 0, none, 0, NULL, NULL,
                                             0, NULL, none, none, none, NULL, 0, NULL, 0, NULL,
                                             NULL, NULL) == 12,
         "backward is not Apple's");
  BNNSFilterDestroy(filter);
  expect(apple_s_filter == 13, "destroy is not Apple's");
}

enum { kTokens = 3, kModel = 2 };

static multihead_BNNSMHAProjectionParameters projection(float* weights, float* target) {
  multihead_BNNSMHAProjectionParameters p;
  memset(&p, 0, sizeof p);
  p.target_desc.layout = multihead_BNNSDataLayoutRowMajorMatrix;
  p.target_desc.data_type = multihead_BNNSDataTypeFloat32;
  p.target_desc.size[0] = kModel;
  p.target_desc.size[1] = kTokens;
  p.target_desc.data = target;
  p.weights.layout = multihead_BNNSDataLayout3DLastMajor;
  p.weights.data_type = multihead_BNNSDataTypeFloat32;
  p.weights.size[0] = p.weights.size[1] = kModel;
  p.weights.size[2] = 1;
  p.weights.data = weights;
  return p;
}

/* Values are the same in every row, and so are outputs; a gradient of ones is one in the end. */
static void call_ours(void) {
  float unit[kModel * kModel] = {1, 0, 0, 1}, x[kTokens * kModel] = {2, 3, 2, 3, 2, 3};
  float out[kTokens * kModel], d_out[kTokens * kModel] = {1, 1, 1, 1, 1, 1};
  float d_x[kTokens * kModel];
  multihead_BNNSLayerParametersMultiheadAttention layer;
  multihead_BNNSMHAProjectionParameters d_value = projection(NULL, d_x);
  multihead_BNNSMHAProjectionParameters d_output = projection(NULL, d_out);
  multihead_BNNSFilter filter = multihead_BNNSFilterCreateLayerMultiheadAttention(NULL, NULL);
  expect(!filter && strstr(multihead_last_error(), "layer_params"), "create is not ours");
  memset(&layer, 0, sizeof layer);
  layer.query = layer.key = layer.value = layer.output = projection(unit, NULL);
  layer.output.weights.layout = multihead_BNNSDataLayout2DLastMajor;
  layer.output.weights.size[2] = 0;
  filter = multihead_BNNSFilterCreateLayerMultiheadAttention(&layer, NULL);
  expect(filter != NULL, multihead_last_error());
  expect(!multihead_BNNSApplyMultiheadAttention(filter, 1, x, 0, x, 0, NULL, 0, x, 0, out, 0, NULL,
                                                NULL, NULL, NULL, NULL),
         multihead_last_error());
  expect(!memcmp(out, x, sizeof x), "apply is not ours");
  expect(!multihead_BNNSApplyMultiheadAttentionBackward(filter, 1, x, 0, NULL, x, 0, NULL, 0, NULL,
                                                        x, 0, &d_value, NULL, NULL, NULL, NULL, 0,
                                                        &d_output, 0, NULL, NULL, NULL),
         multihead_last_error());
  expect(d_x[0] > 0.999f && d_x[0] < 1.001f, "backward is not ours");
  multihead_BNNSFilterDestroy(filter);
  expect(apple_s_filter == 13, "destroy is not ours");
}

int main(void) {
  call_apple_s();
  call_ours();
  printf("passed\n");
  return 0;
}
