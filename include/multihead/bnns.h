/* Apple's BNNS multi-head attention filters, on any system: the same structs, constants and
 * functions, so that a program built against Apple's header runs against this library unchanged.
 *
 * Everything is described in docs/bnns.md; the comments here give shapes and what must hold. Sizes
 * and strides count elements. Functions that return int return 0, or -1 and write nothing:
 * multihead_last_error() then says why.
 *
 * A program that includes Apple's header too defines MULTIHEAD_BNNS_PREFIX: all names here then
 * have multihead_ before them, as multihead_BNNSFilterDestroy and multihead_BNNSDataTypeFloat32.
 */
#ifndef MULTIHEAD_BNNS_H
#define MULTIHEAD_BNNS_H

#include <stddef.h>
#include <stdint.h>
#ifndef __cplusplus
#include <stdbool.h>
#endif

#if defined(_WIN32)
#if defined(MULTIHEAD_BUILDING)
#define MULTIHEAD_API __declspec(dllexport)
#else
#define MULTIHEAD_API
#endif
#else
#define MULTIHEAD_API __attribute__((visibility("default")))
#endif

/* The symbol of a function begins with multihead_ whatever the program calls it: no other library
 * has it. A program that was compiled against Apple's header asks for the plain name, which is
 * there too, but on macOS, where it is Accelerate's. */
#if defined(__GNUC__)
#define MULTIHEAD_TEXT_OF(word) #word
#define MULTIHEAD_TEXT(word) MULTIHEAD_TEXT_OF(word)
#define MULTIHEAD_SYMBOL(name) __asm__(MULTIHEAD_TEXT(__USER_LABEL_PREFIX__) "multihead_" #name)
#else
#define MULTIHEAD_SYMBOL(name)
#endif

/* Beside Apple's header: every name of its own with multihead_ before it. */
#ifdef MULTIHEAD_BNNS_PREFIX
#include "bnns_names.h"
#define MULTIHEAD_BNNS_NAME(name) multihead_##name
#endif

#ifdef __cplusplus
extern "C" {
#endif

#ifndef BNNS_MAX_TENSOR_DIMENSION
#define BNNS_MAX_TENSOR_DIMENSION 8
#endif

typedef uint32_t BNNSNDArrayFlags;
enum {
  BNNSNDArrayFlagBackpropSet = 0,       /* a gradient replaces what is there */
  BNNSNDArrayFlagBackpropAccumulate = 1 /* a gradient is added to it */
};

typedef uint32_t BNNSFlags;
enum {
  BNNSFlagsUseClientPtr = 1 /* weights are read at each call; else copied at create */
};

typedef uint32_t BNNSDataType;
enum {
  BNNSDataTypeFloat16 = 0x10010,
  BNNSDataTypeFloat32 = 0x10020,
  BNNSDataTypeBFloat16 = 0x18010,
  BNNSDataTypeInt8 = 0x20008,
  BNNSDataTypeInt16 = 0x20010,
  BNNSDataTypeInt32 = 0x20020,
  BNNSDataTypeInt64 = 0x20040,
  BNNSDataTypeUInt8 = 0x40008,
  BNNSDataTypeUInt16 = 0x40010,
  BNNSDataTypeUInt32 = 0x40020,
  BNNSDataTypeUInt64 = 0x40040,
  BNNSDataTypeBoolean = 0x100008
};

/* Where the element of an index lies, s being stride[] and size[] as given behind it. */
typedef uint32_t BNNSDataLayout;
enum {
  BNNSDataLayoutVector = 0x10000,            /* (i): i s0, {n} */
  BNNSDataLayout1DLastMajor = 0x18000,       /* (i): i s0, {n} */
  BNNSDataLayout1DFirstMajor = 0x18001,      /* (i): i s0, {n} */
  BNNSDataLayoutRowMajorMatrix = 0x20000,    /* (row, col): col s0 + row s1, {cols, rows} */
  BNNSDataLayoutColumnMajorMatrix = 0x20001, /* (row, col): row s0 + col s1, {rows, cols} */
  BNNSDataLayout2DLastMajor = 0x28000,       /* (i, j): i s0 + j s1, {I, J} */
  BNNSDataLayout2DFirstMajor = 0x28001,      /* (i, j): j s0 + i s1, {I, J} */
  BNNSDataLayoutSNE = 0x30001,               /* (e, n, s): e s0 + n s1 + s s2, {E, N, S} */
  BNNSDataLayoutNSE = 0x30002,               /* (e, s, n): e s0 + s s1 + n s2, {E, S, N} */
  BNNSDataLayoutMHA_DHK = 0x30003,           /* (k, d, h): d s0 + h s1 + k s2, {K, D, H} */
  BNNSDataLayout3DLastMajor = 0x38000,       /* (i, j, k): i s0 + j s1 + k s2, {I, J, K} */
  BNNSDataLayout3DFirstMajor = 0x38001,      /* (i, j, k): k s0 + j s1 + i s2, {I, J, K} */
  BNNSDataLayout4DLastMajor = 0x48000,       /* (i, j, k, m): i s0 + j s1 + k s2 + m s3 */
  BNNSDataLayout4DFirstMajor = 0x48001       /* (i, j, k, m): m s0 + k s1 + j s2 + i s3 */
};

/* An array. A stride of 0 means contiguous, in the order of the layout's strides. */
typedef struct {
  BNNSNDArrayFlags flags; /* of a gradient: set or accumulate */
  BNNSDataLayout layout;
  size_t size[BNNS_MAX_TENSOR_DIMENSION];
  size_t stride[BNNS_MAX_TENSOR_DIMENSION];
  void* data;
  BNNSDataType data_type;
  void* table_data;             /* not used */
  BNNSDataType table_data_type; /* not used */
  float data_scale;             /* not used */
  float data_bias;              /* not used */
} BNNSNDArrayDescriptor;

/* One projection, or the gradients of one. */
typedef struct {
  BNNSNDArrayDescriptor
      target_desc; /* query T x d_model, key S x k_dim, value S x v_dim, output T x d_model */
  BNNSNDArrayDescriptor weights; /* in x d_key (value: d_value) x H; output H d_value x d_model */
  BNNSNDArrayDescriptor bias;    /* d_key (value: d_value) x H; output d_model; data NULL: none */
} BNNSMHAProjectionParameters;

typedef struct {
  BNNSMHAProjectionParameters query;
  BNNSMHAProjectionParameters key;
  BNNSMHAProjectionParameters value;
  bool add_zero_attn;                    /* one more key and value, of zeros */
  BNNSNDArrayDescriptor key_attn_bias;   /* d_key x H: one more key; data NULL: none */
  BNNSNDArrayDescriptor value_attn_bias; /* d_value x H: and its value; both or neither */
  BNNSMHAProjectionParameters output;
  float dropout; /* probability; none outside (0, 1) */
  uint32_t seed; /* of dropout; 0: drawn from the system */
} BNNSLayerParametersMultiheadAttention;

typedef struct {
  uint32_t flags;                                                    /* BNNSFlags */
  size_t n_threads;                                                  /* at most; 0: all */
  int (*alloc_memory)(void** memptr, size_t alignment, size_t size); /* both or neither */
  void (*free_memory)(void* ptr);
} BNNSFilterParameters;

typedef void* BNNSFilter;

/* Returns NULL on failure. */
MULTIHEAD_API BNNSFilter
BNNSFilterCreateLayerMultiheadAttention(const BNNSLayerParametersMultiheadAttention* layer_params,
                                        const BNNSFilterParameters* filter_params)
    MULTIHEAD_SYMBOL(BNNSFilterCreateLayerMultiheadAttention);

MULTIHEAD_API void BNNSFilterDestroy(BNNSFilter filter) MULTIHEAD_SYMBOL(BNNSFilterDestroy);

/* A size pointer whose buffer is NULL asks for the size, and nothing is computed. */
MULTIHEAD_API int BNNSApplyMultiheadAttention(
    BNNSFilter F, size_t batch_size, const void* query, size_t query_stride, const void* key,
    size_t key_stride, const BNNSNDArrayDescriptor* key_mask, size_t key_mask_stride,
    const void* value, size_t value_stride, void* output, size_t output_stride,
    const BNNSNDArrayDescriptor* add_to_attention, size_t* backprop_cache_size,
    void* backprop_cache, size_t* workspace_size, void* workspace)
    MULTIHEAD_SYMBOL(BNNSApplyMultiheadAttention);

MULTIHEAD_API int BNNSApplyMultiheadAttentionBackward(
    BNNSFilter F, size_t batch_size, const void* query, size_t query_stride,
    BNNSMHAProjectionParameters* query_param_delta, const void* key, size_t key_stride,
    const BNNSNDArrayDescriptor* key_mask, size_t key_mask_stride,
    BNNSMHAProjectionParameters* key_param_delta, const void* value, size_t value_stride,
    BNNSMHAProjectionParameters* value_param_delta, const BNNSNDArrayDescriptor* add_to_attention,
    BNNSNDArrayDescriptor* key_attn_bias_delta, BNNSNDArrayDescriptor* value_attn_bias_delta,
    const void* output, size_t output_stride, BNNSMHAProjectionParameters* output_param_delta,
    size_t backprop_cache_size, void* backprop_cache, size_t* workspace_size, void* workspace)
    MULTIHEAD_SYMBOL(BNNSApplyMultiheadAttentionBackward);

/* Not Apple's. */

/* Why the calling thread's last call failed; "" after one that did not. Valid until its next call.
 */
MULTIHEAD_API const char* multihead_last_error(void);
/* Threads of filters that are created from then on and ask for all; the most of any. */
MULTIHEAD_API void multihead_set_num_threads(int threads);
/* -1 where the environment's MULTIHEAD_NUM_THREADS makes no sense. */
MULTIHEAD_API int multihead_get_num_threads(void);

#ifdef __cplusplus
}
#endif

#ifdef MULTIHEAD_BNNS_PREFIX
#undef MULTIHEAD_BNNS_NAME
#define MULTIHEAD_BNNS_NAME(name) name
#endif

#endif
