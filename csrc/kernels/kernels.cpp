// The one translation unit of a kernel set: compiled once per ISA with that ISA's flags.
#include "attention_backward.h"
#include "attention_forward.h"
#include "dropout.h"
#include "masks.h"
#include "rotate.h"
#include "softmax_row.h"
#include "transpose.h"
#include "weights.h"

namespace multihead {
namespace MULTIHEAD_ISA {
namespace {

template <class T>
constexpr Kernels<T> kTable = {
    .layout = {},
    .key_layout = {},
    .value_layout = {},
    .left = {},
    .sums_are_tiles = true,
    .reads_rows = true,
    .token_step = 1,
    .token_tiles = 1,
    .tile_gemm = tile_gemm<T>,
    .token_gemm = token_gemm<T>,
    .row_gemm = row_gemm<T>,
    .pack = pack<T>,
    .unpack = unpack<T>,
    .pack_scores = pack_scores<T>,
    .unpack_sums = unpack<T>,
    .tile_of_sums = nullptr,  // they are tiles
    .gather_tokens = gather<T>,
    .gather_rows = gather<T>,
    .transpose = transpose<T>,
    .add_to_row = add_to_row<T>,
    .tile_to_rows = tile_to_rows<T>,
    .rows_to_tile = rows_to_tile<T>,
    .feature_rows = feature_rows<T>,
    .columns_of_keys = as_it_is<T>,
    .tokens_of_values = as_it_is<T>,
    .rotate = rotate<T>,
    .scale = scale<T>,
    .add_scaled = add_scaled<T>,
    .scale_sums = scale<T>,
    .row_sums = row_sums<T>,
    .column_sums = column_sums<T>,
    .delta = delta<T>,
    .add_score_dot = add_score_dot<T>,
    .finite = finite<T>,
    .rows_are_finite = rows_are_finite<T>,
    .forward_block = forward_block<T>,
    .forward_merge = forward_merge<T>,
    .forward_end = forward_end<T>,
    .score_gradients = score_gradients<T>,
    .backward_block = backward_block<T>,
    .weights_block = weights_block<T>,
    .row_scores = row_scores<T>,
    .row_rules = row_rules<T>,
    .softmax_row = softmax_row<T>,
    .exp2_all = exp2_all<T>,
    .visible_bits = visible_bits,
    .visible_bits_additive = visible_bits_additive<T>,
    .additive_to_log2 = additive_to_log2<T>,
};

#define MULTIHEAD_STRING(x) #x
#define MULTIHEAD_NAME(x) MULTIHEAD_STRING(x)
constexpr KernelSet kSet = {
    .name = MULTIHEAD_NAME(MULTIHEAD_ISA),
    .f32 = &kTable<float>,
    .f64 = &kTable<double>,
    .bf16 = nullptr,
    .enter = nullptr,
    .leave = nullptr,
    .dropout_key = dropout_key,
    .dropout_rows = dropout_rows,
    .keep_bits = keep_bits,
};

}  // namespace
}  // namespace MULTIHEAD_ISA

#define MULTIHEAD_JOIN(a, b) a##b
#define MULTIHEAD_ACCESSOR(isa) MULTIHEAD_JOIN(isa, _kernels)
const KernelSet& MULTIHEAD_ACCESSOR(MULTIHEAD_ISA)() { return MULTIHEAD_ISA::kSet; }

}  // namespace multihead
