/* Sizes and offsets of the structs, and values of the constants, as programs built against Apple's
 * header have them compiled in. Compiled only, as C99, C11 and C++17. */
#include <multihead/bnns.h>

#ifdef __cplusplus
#define CHECK(name, condition) static_assert(condition, #condition)
#else
#define CHECK(name, condition) typedef char check_##name[(condition) ? 1 : -1]
#endif
#define AT(name, type, field, offset) CHECK(name, offsetof(type, field) == offset)

CHECK(array, sizeof(BNNSNDArrayDescriptor) == 176);
AT(array_flags, BNNSNDArrayDescriptor, flags, 0);
AT(array_layout, BNNSNDArrayDescriptor, layout, 4);
AT(array_size, BNNSNDArrayDescriptor, size, 8);
AT(array_stride, BNNSNDArrayDescriptor, stride, 72);
AT(array_data, BNNSNDArrayDescriptor, data, 136);
AT(array_type, BNNSNDArrayDescriptor, data_type, 144);
AT(array_table, BNNSNDArrayDescriptor, table_data, 152);
AT(array_table_type, BNNSNDArrayDescriptor, table_data_type, 160);
AT(array_scale, BNNSNDArrayDescriptor, data_scale, 164);
AT(array_bias, BNNSNDArrayDescriptor, data_bias, 168);

CHECK(projection, sizeof(BNNSMHAProjectionParameters) == 528);
AT(projection_target, BNNSMHAProjectionParameters, target_desc, 0);
AT(projection_weights, BNNSMHAProjectionParameters, weights, 176);
AT(projection_bias, BNNSMHAProjectionParameters, bias, 352);

CHECK(layer, sizeof(BNNSLayerParametersMultiheadAttention) == 2480);
AT(layer_query, BNNSLayerParametersMultiheadAttention, query, 0);
AT(layer_key, BNNSLayerParametersMultiheadAttention, key, 528);
AT(layer_value, BNNSLayerParametersMultiheadAttention, value, 1056);
AT(layer_zero, BNNSLayerParametersMultiheadAttention, add_zero_attn, 1584);
AT(layer_key_bias, BNNSLayerParametersMultiheadAttention, key_attn_bias, 1592);
AT(layer_value_bias, BNNSLayerParametersMultiheadAttention, value_attn_bias, 1768);
AT(layer_output, BNNSLayerParametersMultiheadAttention, output, 1944);
AT(layer_dropout, BNNSLayerParametersMultiheadAttention, dropout, 2472);
AT(layer_seed, BNNSLayerParametersMultiheadAttention, seed, 2476);

CHECK(filter, sizeof(BNNSFilterParameters) == 32);
AT(filter_flags, BNNSFilterParameters, flags, 0);
AT(filter_threads, BNNSFilterParameters, n_threads, 8);
AT(filter_alloc, BNNSFilterParameters, alloc_memory, 16);
AT(filter_free, BNNSFilterParameters, free_memory, 24);

CHECK(set, BNNSNDArrayFlagBackpropSet == 0 && BNNSNDArrayFlagBackpropAccumulate == 1);
CHECK(client, BNNSFlagsUseClientPtr == 1);
CHECK(floats, BNNSDataTypeFloat16 == 0x10010 && BNNSDataTypeFloat32 == 0x10020 &&
                  BNNSDataTypeBFloat16 == 0x18010 && BNNSDataTypeBoolean == 0x100008);
CHECK(ints, BNNSDataTypeInt8 == 0x20008 && BNNSDataTypeInt16 == 0x20010 &&
                BNNSDataTypeInt32 == 0x20020 && BNNSDataTypeInt64 == 0x20040 &&
                BNNSDataTypeUInt8 == 0x40008 && BNNSDataTypeUInt16 == 0x40010 &&
                BNNSDataTypeUInt32 == 0x40020 && BNNSDataTypeUInt64 == 0x40040);
CHECK(layouts,
      BNNSDataLayoutVector == 0x10000 && BNNSDataLayout1DLastMajor == 0x18000 &&
          BNNSDataLayout1DFirstMajor == 0x18001 && BNNSDataLayoutRowMajorMatrix == 0x20000 &&
          BNNSDataLayoutColumnMajorMatrix == 0x20001 && BNNSDataLayout2DLastMajor == 0x28000 &&
          BNNSDataLayout2DFirstMajor == 0x28001 && BNNSDataLayoutSNE == 0x30001 &&
          BNNSDataLayoutNSE == 0x30002 && BNNSDataLayoutMHA_DHK == 0x30003 &&
          BNNSDataLayout3DLastMajor == 0x38000 && BNNSDataLayout3DFirstMajor == 0x38001 &&
          BNNSDataLayout4DLastMajor == 0x48000 && BNNSDataLayout4DFirstMajor == 0x48001);
