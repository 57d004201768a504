/* A program as it would be written against Apple's published declarations: it has its own copy of
 * them and does not see our header. Outputs and gradients are held against plain loops in double
 * and their central differences; then misuse, many filters, and eight threads on one filter. */
#if defined(_WIN32)
#include <malloc.h>
#endif
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  uint32_t flags, layout;
  size_t size[8], stride[8];
  void* data;
  uint32_t data_type;
  void* table_data;
  uint32_t table_data_type;
  float data_scale, data_bias;
} BNNSNDArrayDescriptor;

typedef struct {
  BNNSNDArrayDescriptor target_desc, weights, bias;
} BNNSMHAProjectionParameters;

typedef struct {
  BNNSMHAProjectionParameters query, key, value;
  bool add_zero_attn;
  BNNSNDArrayDescriptor key_attn_bias, value_attn_bias;
  BNNSMHAProjectionParameters output;
  float dropout;
  uint32_t seed;
} BNNSLayerParametersMultiheadAttention;

typedef struct {
  uint32_t flags;
  size_t n_threads;
  int (*alloc_memory)(void**, size_t, size_t);
  void (*free_memory)(void*);
} BNNSFilterParameters;

typedef void* BNNSFilter;

BNNSFilter BNNSFilterCreateLayerMultiheadAttention(const BNNSLayerParametersMultiheadAttention*,
                                                   const BNNSFilterParameters*);
void BNNSFilterDestroy(BNNSFilter);
int BNNSApplyMultiheadAttention(BNNSFilter, size_t, const void*, size_t, const void*, size_t,
                                const BNNSNDArrayDescriptor*, size_t, const void*, size_t, void*,
                                size_t, const BNNSNDArrayDescriptor*, size_t*, void*, size_t*,
                                void*);
int BNNSApplyMultiheadAttentionBackward(BNNSFilter, size_t, const void*, size_t,
                                        BNNSMHAProjectionParameters*, const void*, size_t,
                                        const BNNSNDArrayDescriptor*, size_t,
                                        BNNSMHAProjectionParameters*, const void*, size_t,
                                        BNNSMHAProjectionParameters*, const BNNSNDArrayDescriptor*,
                                        BNNSNDArrayDescriptor*, BNNSNDArrayDescriptor*, const void*,
                                        size_t, BNNSMHAProjectionParameters*, size_t, void*,
                                        size_t*, void*);
const char* multihead_last_error(void);

enum {
  kRowMajorMatrix = 0x20000,
  k2DLastMajor = 0x28000,
  k3DLastMajor = 0x38000,
  kVector = 0x10000
};
enum { kFloat32 = 0x10020, kBoolean = 0x100008 };

/* Every size differs from every other. */
enum { N = 2, T = 4, S = 7, E = 6, KD = 5, VD = 3, H = 2, D = 8, DV = 9 };

typedef struct {
  float query[N * T * E], key[N * S * KD], value[N * S * VD];
  float w_q[H * D * E], w_k[H * D * KD], w_v[H * DV * VD], w_o[E * H * DV];
  float p_q[H * D], p_k[H * D], p_v[H * DV], p_o[E];
  float b_k[H * D], b_v[H * DV], add[T * S];
} Numbers;

static uint64_t g_state = 88172645463325252ull;
static float number(void) {
  g_state ^= g_state << 13;
  g_state ^= g_state >> 7;
  g_state ^= g_state << 17;
  return (float)((double)(g_state >> 40) / (1 << 23) - 1.0);
}

static int g_failures;
#define EXPECT(condition)                                                         \
  do {                                                                            \
    if (!(condition)) {                                                           \
      printf("line %d: %s (%s)\n", __LINE__, #condition, multihead_last_error()); \
      ++g_failures;                                                               \
    }                                                                             \
  } while (0)

static BNNSNDArrayDescriptor array(uint32_t layout, void* data, size_t a, size_t b, size_t c) {
  BNNSNDArrayDescriptor d;
  memset(&d, 0, sizeof d);
  d.layout = layout;
  d.size[0] = a;
  d.size[1] = b;
  d.size[2] = c;
  d.data = data;
  d.data_type = kFloat32;
  return d;
}

/* The blocks of in_proj lie as torch has them: row-major (H D, in), which is 3DLastMajor {in, D,
 * H}. */
static BNNSMHAProjectionParameters projection(size_t tokens, size_t in, size_t d, void* target,
                                              void* w, void* bias) {
  BNNSMHAProjectionParameters p;
  memset(&p, 0, sizeof p);
  p.target_desc = array(kRowMajorMatrix, target, in, tokens, 0);
  p.target_desc.stride[2] = tokens * in;
  p.weights = array(k3DLastMajor, w, in, d, H);
  p.bias = array(k2DLastMajor, bias, d, H, 0);
  return p;
}

static BNNSMHAProjectionParameters output_projection(void* target, void* w, void* bias) {
  BNNSMHAProjectionParameters p;
  memset(&p, 0, sizeof p);
  p.target_desc = array(kRowMajorMatrix, target, E, T, 0);
  p.target_desc.stride[2] = T * E;
  p.weights = array(k2DLastMajor, w, H * DV, E, 0);
  p.bias = array(kVector, bias, E, 0, 0);
  return p;
}

static BNNSLayerParametersMultiheadAttention layer_of(Numbers* x) {
  BNNSLayerParametersMultiheadAttention l;
  memset(&l, 0, sizeof l);
  l.query = projection(T, E, D, NULL, x->w_q, x->p_q);
  l.key = projection(S, KD, D, NULL, x->w_k, x->p_k);
  l.value = projection(S, VD, DV, NULL, x->w_v, x->p_v);
  l.output = output_projection(NULL, x->w_o, x->p_o);
  l.add_zero_attn = true;
  l.key_attn_bias = array(k2DLastMajor, x->b_k, D, H, 0);
  l.value_attn_bias = array(k2DLastMajor, x->b_v, DV, H, 0);
  return l;
}

/* Plain loops: the loss is the sum of out * weight. */
static double reference(const Numbers* x, const uint8_t* hidden, const float* weight, double* out) {
  double loss = 0;
  for (int n = 0; n < N; ++n)
    for (int t = 0; t < T; ++t) {
      double heads[H * DV];
      for (int h = 0; h < H; ++h) {
        double score[S + 2], values[S + 2][DV], top = -1e300, sum = 0;
        for (int j = 0; j < S + 2; ++j) {
          score[j] = 0;
          for (int d = 0; d < D; ++d) {
            double q = x->p_q[h * D + d], k = j < S    ? x->p_k[h * D + d]
                                              : j == S ? x->b_k[h * D + d]
                                                       : 0;
            for (int e = 0; e < E; ++e)
              q += (double)x->w_q[(h * D + d) * E + e] * x->query[(n * T + t) * E + e];
            for (int e = 0; e < KD && j < S; ++e)
              k += (double)x->w_k[(h * D + d) * KD + e] * x->key[(n * S + j) * KD + e];
            score[j] += q * k / sqrt((double)D);
          }
          for (int d = 0; d < DV; ++d) {
            values[j][d] = j < S ? x->p_v[h * DV + d] : j == S ? x->b_v[h * DV + d] : 0;
            for (int e = 0; e < VD && j < S; ++e)
              values[j][d] +=
                  (double)x->w_v[(h * DV + d) * VD + e] * x->value[(n * S + j) * VD + e];
          }
          if (j < S) score[j] = hidden[n * S + j] ? -INFINITY : score[j] + x->add[t * S + j];
          top = fmax(top, score[j]);
        }
        for (int j = 0; j < S + 2; ++j) sum += exp(score[j] - top);
        for (int d = 0; d < DV; ++d) {
          heads[h * DV + d] = 0;
          for (int j = 0; j < S + 2; ++j)
            heads[h * DV + d] += exp(score[j] - top) / sum * values[j][d];
        }
      }
      for (int e = 0; e < E; ++e) {
        double y = x->p_o[e];
        for (int i = 0; i < H * DV; ++i) y += x->w_o[e * H * DV + i] * heads[i];
        if (out) out[(n * T + t) * E + e] = y;
        loss += y * weight[(n * T + t) * E + e];
      }
    }
  return loss;
}

static Numbers g_x, g_grad;
static uint8_t g_hidden[N * S];
static float g_weight[N * T * E];

static int forward(BNNSFilter f, float* out, size_t* cache_size, void* cache,
                   size_t* workspace_size, void* workspace) {
  BNNSNDArrayDescriptor mask = array(kVector, g_hidden, S, 0, 0), add;
  mask.data_type = kBoolean;
  add = array(kRowMajorMatrix, g_x.add, S, T, 0);
  return BNNSApplyMultiheadAttention(f, N, g_x.query, T * E, g_x.key, S * KD, &mask, S, g_x.value,
                                     S * VD, out, T * E, &add, cache_size, cache, workspace_size,
                                     workspace);
}

static int backward(BNNSFilter f, Numbers* g, size_t cache_size, void* cache) {
  BNNSNDArrayDescriptor mask = array(kVector, g_hidden, S, 0, 0), add;
  BNNSNDArrayDescriptor d_b_k = array(k2DLastMajor, g->b_k, D, H, 0),
                        d_b_v = array(k2DLastMajor, g->b_v, DV, H, 0);
  BNNSMHAProjectionParameters d_q = projection(T, E, D, g->query, g->w_q, g->p_q),
                              d_k = projection(S, KD, D, g->key, g->w_k, g->p_k),
                              d_v = projection(S, VD, DV, g->value, g->w_v, g->p_v),
                              d_o = output_projection(g_weight, g->w_o, g->p_o);
  mask.data_type = kBoolean;
  add = array(kRowMajorMatrix, g_x.add, S, T, 0);
  return BNNSApplyMultiheadAttentionBackward(f, N, g_x.query, T * E, &d_q, g_x.key, S * KD, &mask,
                                             S, &d_k, g_x.value, S * VD, &d_v, &add, &d_b_k, &d_b_v,
                                             NULL, 0, &d_o, cache_size, cache, NULL, NULL);
}

static void check_numbers(BNNSFilter f) {
  float out[N * T * E];
  double expected[N * T * E], worst = 0, largest = 0;
  const size_t count = offsetof(Numbers, add) / sizeof(float);
  size_t size = 0, i;
  void* cache;
  float *x = (float*)&g_x, *g = (float*)&g_grad;
  EXPECT(forward(f, out, &size, NULL, NULL, NULL) == 0 && size > 0);
  cache = malloc(size);
  EXPECT(forward(f, out, &size, cache, NULL, NULL) == 0);
  reference(&g_x, g_hidden, g_weight, expected);
  for (i = 0; i < N * T * E; ++i) worst = fmax(worst, fabs(out[i] - expected[i]));
  EXPECT(worst < 1e-5);
  EXPECT(backward(f, &g_grad, size, cache) == 0);
  worst = 0;
  for (i = 0; i < count; ++i) { /* central differences; the step as it is in float */
    const float was = x[i], above = was + 1e-3f, below = was - 1e-3f;
    double slope;
    x[i] = above;
    slope = reference(&g_x, g_hidden, g_weight, NULL);
    x[i] = below;
    slope = (slope - reference(&g_x, g_hidden, g_weight, NULL)) / ((double)above - below);
    x[i] = was;
    worst = fmax(worst, fabs(slope - g[i]));
    largest = fmax(largest, fabs(slope));
  }
  printf("largest gradient %.3g, largest error %.2g\n", largest, worst);
  EXPECT(largest > 0.1 && worst < 1e-4 * largest);
  free(cache);
}

static void check_misuse(BNNSFilter f) {
  float out[N * T * E], before[N * T * E];
  char small[64] = {0};
  size_t size = sizeof small, i;
  BNNSLayerParametersMultiheadAttention l = layer_of(&g_x);
  for (i = 0; i < N * T * E; ++i) out[i] = before[i] = number();
  EXPECT(forward(NULL, out, NULL, NULL, NULL, NULL) == -1);
  EXPECT(strstr(multihead_last_error(), "F:"));
  EXPECT(forward(f, NULL, NULL, NULL, NULL, NULL) == -1);
  EXPECT(strstr(multihead_last_error(), "output"));
  EXPECT(forward(f, g_x.query + 1, NULL, NULL, NULL, NULL) == -1);
  EXPECT(strstr(multihead_last_error(), "query"));
  EXPECT(forward(f, out, &size, small, NULL, NULL) == -1);
  EXPECT(strstr(multihead_last_error(), "backprop_cache_size"));
  EXPECT(forward(f, out, NULL, NULL, &size, small) == -1);
  EXPECT(strstr(multihead_last_error(), "workspace_size"));
  EXPECT(backward(f, &g_grad, size, small) == -1);
  EXPECT(memcmp(out, before, sizeof out) == 0);
  for (i = 0; i < sizeof small; ++i) EXPECT(small[i] == 0);
  l.key.weights.size[1] = 3;
  EXPECT(BNNSFilterCreateLayerMultiheadAttention(&l, NULL) == NULL);
  EXPECT(strstr(multihead_last_error(), "key.weights"));
  BNNSFilterDestroy(NULL);
}

static int g_allocated;
static int allocate(void** data, size_t align, size_t size) {
  ++g_allocated;
#if defined(_WIN32)
  *data = _aligned_malloc(size, align);
  return *data ? 0 : -1;
#else
  return posix_memalign(data, align, size);
#endif
}
static void release(void* data) {
  --g_allocated;
#if defined(_WIN32)
  _aligned_free(data);
#else
  free(data);
#endif
}

static void check_many_filters(void) {
  BNNSLayerParametersMultiheadAttention l = layer_of(&g_x);
  BNNSFilterParameters options;
  int i, most = 0;
  memset(&options, 0, sizeof options);
  for (i = 0; i < 10000; ++i) {
    BNNSFilter f;
    options.flags = (uint32_t)i & 1;
    options.alloc_memory = i % 4 < 2 ? allocate : NULL;
    options.free_memory = i % 4 < 2 ? release : NULL;
    f = BNNSFilterCreateLayerMultiheadAttention(&l, &options);
    EXPECT(f != NULL);
    if (i % 100 < 2) {
      float out[N * T * E];
      EXPECT(forward(f, out, NULL, NULL, NULL, NULL) == 0);
      EXPECT(backward(f, &g_grad, 0, NULL) == 0);
    }
    if (g_allocated > most) most = g_allocated;
    BNNSFilterDestroy(f);
  }
  EXPECT(most > 0 && g_allocated == 0);
}

/* Eight threads, one filter with dropout: each backward sees the mask of its own forward. */
typedef struct {
  BNNSFilter filter;
  int wrong;
} Thread;

static void* apply_often(void* data) {
  Thread* t = data;
  size_t size = 0;
  float out[N * T * E];
  void* cache;
  int i;
  forward(t->filter, out, &size, NULL, NULL, NULL);
  cache = malloc(size);
  for (i = 0; i < 50; ++i) {
    Numbers* g = calloc(1, sizeof *g);
    double linear = 0, loss = 0;
    int j;
    if (forward(t->filter, out, &size, cache, NULL, NULL) != 0) ++t->wrong;
    if (backward(t->filter, g, size, cache) != 0) ++t->wrong;
    /* the loss is linear in w_o and p_o: its gradients add up to it, if the masks are the same */
    for (j = 0; j < N * T * E; ++j) loss += (double)out[j] * g_weight[j];
    for (j = 0; j < E * H * DV; ++j) linear += (double)g->w_o[j] * g_x.w_o[j];
    for (j = 0; j < E; ++j) linear += (double)g->p_o[j] * g_x.p_o[j];
    if (fabs(loss - linear) > 1e-4) ++t->wrong;
    free(g);
  }
  free(cache);
  return NULL;
}

static void check_threads(void) {
  BNNSLayerParametersMultiheadAttention l = layer_of(&g_x);
  pthread_t threads[8];
  Thread states[8];
  BNNSFilter f;
  int i;
  l.dropout = 0.3f;
  l.seed = 7;
  f = BNNSFilterCreateLayerMultiheadAttention(&l, NULL);
  for (i = 0; i < 8; ++i) {
    states[i].filter = f;
    states[i].wrong = 0;
    pthread_create(&threads[i], NULL, apply_often, &states[i]);
  }
  for (i = 0; i < 8; ++i) {
    pthread_join(threads[i], NULL);
    EXPECT(states[i].wrong == 0);
  }
  BNNSFilterDestroy(f);
}

int main(void) {
  BNNSLayerParametersMultiheadAttention l = layer_of(&g_x);
  float* x = (float*)&g_x;
  size_t i;
  BNNSFilter f;
  for (i = 0; i < sizeof g_x / sizeof(float); ++i) x[i] = 0.7f * number();
  for (i = 0; i < N * T * E; ++i) g_weight[i] = number();
  for (i = 0; i < N * S; ++i) g_hidden[i] = number() < -0.4f;
  f = BNNSFilterCreateLayerMultiheadAttention(&l, NULL);
  EXPECT(f != NULL);
  check_numbers(f);
  check_misuse(f);
  BNNSFilterDestroy(f);
  check_many_filters();
  check_threads();
  printf("%s\n", g_failures ? "FAILED" : "passed");
  return g_failures != 0;
}
