// The one translation unit of a kernel set that multiplies pairs of bfloat16: a table of its own
// for them, compiled with its instructions, and those of a plain set for all else.
#include "attention_backward.h"
#include "attention_forward.h"
#include "pair_tiles.h"
#include "weights.h"
#if defined(MULTIHEAD_AMX)
#include "amx.h"
#endif

#define MULTIHEAD_STRING(x) #x
#define MULTIHEAD_NAME(x) MULTIHEAD_STRING(x)
#define MULTIHEAD_JOIN(a, b) a##b
#define MULTIHEAD_ACCESSOR(isa) MULTIHEAD_JOIN(isa, _kernels)

namespace multihead {

const KernelSet& MULTIHEAD_ACCESSOR(MULTIHEAD_PLAIN)();

namespace MULTIHEAD_ISA {
namespace {

// Sums are floats, and so are scores: passes over these alone are the plain set's.
Kernels<BFloat16> table(const Kernels<float>& sums) {
  return {
      .layout = kPairs,
      .key_layout = kPairKeys,
      .value_layout = kPairValues,
      .left = kLeft,
      .sums_are_tiles = false,
      .reads_rows = false,
      .token_step = kLane,
      .token_tiles = 4,
      .tile_gemm = tile_gemm<BFloat16>,
      .token_gemm = token_gemm<BFloat16>,
      .row_gemm = nullptr,  // few queries are computed in float
      .pack = pack_pair_tile,
      .unpack = unpack_pair_tile,
      .pack_scores = sums.pack_scores,
      .unpack_sums = sums.unpack_sums,
      .tile_of_sums = pair_tile_of_sums,
      .gather_tokens = gather_token_pairs,
      .gather_rows = gather_pair_rows,
      .transpose = transpose_halves,
      .add_to_row = sums.add_to_row,
      .tile_to_rows = pair_tile_to_rows,
      .rows_to_tile = rows_to_pair_tile,
      .feature_rows = pair_feature_rows,
      .columns_of_keys = columns_of_pair_keys,
      .tokens_of_values = tokens_of_pair_values,
      .rotate = sums.rotate,
      .scale = nullptr,  // factors go to sums
      .add_scaled = sums.add_scaled,
      .scale_sums = sums.scale_sums,
      .row_sums = sums_of_rows,
      .column_sums = sums_of_columns,
      .delta = pair_delta,
      .add_score_dot = sums.add_score_dot,
      .finite = finite<BFloat16>,
      .rows_are_finite = nullptr,
      .forward_block = forward_block<BFloat16>,
      .forward_merge = forward_merge<BFloat16>,
      .forward_end = forward_end<BFloat16>,
      .score_gradients = score_gradients<BFloat16>,
      .backward_block = backward_block<BFloat16>,
      .weights_block = weights_block<BFloat16>,
      .row_scores = nullptr,
      .row_rules = nullptr,
      .softmax_row = nullptr,
      .exp2_all = sums.exp2_all,
      .visible_bits = sums.visible_bits,
      .visible_bits_additive = sums.visible_bits_additive,
      .additive_to_log2 = sums.additive_to_log2,
  };
}

#if defined(MULTIHEAD_AMX)
constexpr auto kEnter = configure_tiles, kLeave = release_tiles;
#else
constexpr void (*kEnter)() = nullptr;
constexpr void (*kLeave)() = nullptr;
#endif

}  // namespace
}  // namespace MULTIHEAD_ISA

const KernelSet& MULTIHEAD_ACCESSOR(MULTIHEAD_ISA)() {
  static const Kernels<BFloat16> pairs =
      MULTIHEAD_ISA::table(*MULTIHEAD_ACCESSOR(MULTIHEAD_PLAIN)().f32);
  static const KernelSet set = [] {
    KernelSet s = MULTIHEAD_ACCESSOR(MULTIHEAD_PLAIN)();
    s.name = MULTIHEAD_NAME(MULTIHEAD_ISA);
    s.bf16 = &pairs;
    s.enter = MULTIHEAD_ISA::kEnter;
    s.leave = MULTIHEAD_ISA::kLeave;
    return s;
  }();
  return set;
}

}  // namespace multihead
