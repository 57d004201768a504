// What a kernel set offers: one table of functions per element type, filled once per ISA.
//
// Tiles hold 64 tokens (or fewer: a multiple of 16) in SIMD lanes and features in rows, so every
// sum runs over rows, in an order that no ISA, register tile or thread count changes. Where the
// elements of a tile lie is the set's own business (layout.h); scores and what is added to them are
// [keys][lanes] on every set.
#pragma once

#include "layout.h"
#include "storage.h"

namespace multihead {

// What the accumulators of a product start from.
enum class Init : int { Zero, Load, LoadScaled, Bias };

// Memory that is wanted soon. Products ask for it line by line while they multiply.
struct LineRange {
  const char* at;
  int64_t lines;  // of 64 bytes
};
struct Prefetch {
  LineRange now{nullptr, 0};
  const LineRange *next = nullptr, *end = nullptr;  // more, in this order
};

// Packed weights: panels of 6 rows, 128 elements of k at a time. Row r, element k of m rows is at
// [k / 128][r / 6][k % 128][r % 6].
constexpr int64_t kPanelRows = 6;
constexpr int64_t kDepth = 128;  // rows of a tile that stay in L1
constexpr int64_t panel_rows(int64_t m) { return (m + kPanelRows - 1) / kPanelRows * kPanelRows; }

// The left factor of a product, m x k. Strides count elements.
template <class E>
struct Left {
  const E* data;
  int64_t row, k;       // strides; packed: the rows of all panels, nothing
  bool packed = false;  // in panels
};

// c[m][lanes] = init + a[m][k] . b[k][lanes]: weights times a tile, b and c are tiles.
template <class E>
struct TileGemm {
  int64_t m, k, lanes;  // k: rows as b has them, with what fills up a group
  Left<E> a;            // 0 there
  const E* b;
  E* c;
  Init init;                // Zero, Load or Bias
  const E* bias = nullptr;  // a value per row
  int64_t bias_stride = 1;
  Prefetch* prefetch = nullptr;
};

// c[m][columns] (+)= a[m][tokens] . b[tokens][columns]: tile rows times gathered tokens.
template <class E>
struct TokenGemm {
  int64_t m, tokens, columns;
  const E* a;  // a tile of `lanes`
  int64_t lanes;
  const E* b;  // of gather_tokens, `columns` apart, from its first token on
  Acc<E>* c;   // [m][columns]
  bool adds;
  Prefetch* prefetch;
};

// c[queries][columns] (+)= p[queries][keys] . v[keys][columns]: all in rows.
template <class E>
struct RowGemm {
  int64_t queries, keys, columns;
  const Acc<E>* p;
  int64_t p_row;
  const E* v;
  int64_t v_row;
  Acc<E>* c;  // [queries][columns]
  bool adds;
};

// s[queries][keys] = q[queries][head_dim] . k[keys][head_dim]: few queries, and keys where they
// lie.
template <class E>
struct RowScores {
  int64_t queries, keys, head_dim;  // at most four queries
  const E* q;
  int64_t q_row;
  const E* k;
  int64_t k_row;
  Acc<E>* s;
  int64_t s_row;  // with room up to a multiple of 16 keys
};

// One block of queries against one tile of keys.
template <class E>
struct Block {
  int64_t head_dim, value_dim;
  int64_t lanes;  // queries, rounded up
  const E* q;     // tile of head_dim, scaled by scale * log2(e)
  const E* k;     // tile of head_dim, key_lanes; lanes from `keys` on hold anything
  const E* v;     // tile of value_dim, key_lanes, likewise
  int64_t key_lanes, keys;
  const uint64_t* visible;  // a word per key, a bit per query; null: all
  const Acc<E>* bias;       // [keys][lanes], log2 units; null: none
  const Acc<E>* key_bias;   // [keys], log2 units; null: none
  const uint64_t* keep;     // like visible, drawn by dropout; null: all
  // Both are the set's own, and hold anything after a call, unless the function says otherwise.
  Acc<E>* s;                     // [keys][lanes]: scores
  E* p;                          // [keys][lanes]: probabilities; may be the memory of s
  Prefetch* prefetch = nullptr;  // what the caller wants next
};

template <class E>
struct ForwardBlock : Block<E> {
  Acc<E>* out;                // [value_dim][lanes], not yet divided by row_sum
  Stat<E>*row_max, *row_sum;  // [lanes]
  uint64_t* seen;             // queries that saw a key so far
  bool first;
};

template <class E>
struct BackwardBlock : Block<E> {
  const Stat<E>*row_max, *row_inv, *delta;  // [lanes]
  const E* d_out;                           // tile of value_dim, scaled by 1 / (1 - dropout)
  const Acc<E>* d_weights;                  // [keys][lanes], scaled likewise; null: none
  const E *q_rows, *d_out_rows;             // of tile_to_rows: head_pitch, value_pitch apart
  int64_t head_pitch, value_pitch, queries;
  bool finite;       // no NaN or infinity in q and d_out
  Acc<E>* d_p;       // [keys][lanes]: gradient of the probabilities
  E* ds;             // [keys][lanes]: gradient of the scores; may be the memory of d_p; see s
  Acc<E>*d_k, *d_v;  // [keys][head_pitch], [keys][value_pitch]: accumulated
  Acc<E>* d_q;       // [head_dim][lanes]: accumulated
};

// The random words of a call: pure functions of positions, see dropout.h.
struct DropoutKey {
  uint32_t word[2];
};
struct DropoutRows {
  uint32_t low[kTile], high[kTile];
};

template <class E>
struct Kernels {
  TileLayout layout;

  // Products.
  void (*tile_gemm)(const TileGemm<E>&);
  void (*token_gemm)(const TokenGemm<E>&);
  void (*row_gemm)(const RowGemm<E>&);

  // Between rows of features, the caller's arrays, and tiles. Rows that are null are 0, or left
  // alone.
  void (*pack)(E* tile, int64_t lanes, const SourceRows& rows, int64_t features);
  void (*unpack)(const TargetRows& rows, const E* tile, int64_t lanes, int64_t features,
                 bool accumulate);
  // The same for [columns][lanes], as scores lie.
  void (*pack_scores)(Acc<E>* scores, int64_t lanes, const SourceRows& rows, int64_t columns);
  void (*unpack_scores)(const TargetRows& rows, const Acc<E>* scores, int64_t lanes,
                        int64_t columns);
  // Tokens in rows, zero from `columns` up to pitch: for products over tokens, `group` neighbours
  // together as features in a tile, the last group filled up with zeros; and as they are.
  void (*gather_tokens)(E* panel, int64_t pitch, const SourceRows& rows, int64_t columns,
                        int64_t tokens);
  void (*gather_rows)(E* dst, int64_t pitch, const SourceRows& rows, int64_t columns,
                      int64_t count);
  // The first of the rows += sums.
  void (*add_to_row)(const TargetRows& row, const Acc<E>* sums, int64_t n);
  // Tokens in rows for products over tokens, scaled; zero from `features` up to pitch.
  void (*tile_to_rows)(E* dst, int64_t pitch, const E* tile, int64_t lanes, int64_t features,
                       Acc<E> scale);
  // And back, from rows of sums; tokens from `count` up to lanes are 0.
  void (*rows_to_tile)(E* tile, int64_t lanes, const Acc<E>* rows, int64_t pitch, int64_t count,
                       int64_t features, Acc<E> scale);

  // Passes over tiles.
  void (*scale)(E* dst, const E* src, int64_t n, Acc<E> factor);  // dst = factor * src
  // dst = (or +=) factor * sums, [features][lanes] to a tile
  void (*store_sums)(E* tile, const Acc<E>* sums, int64_t lanes, int64_t features, Acc<E> factor,
                     bool accumulate);
  void (*add_scaled)(Acc<E>* dst, const Acc<E>* src, int64_t n, Acc<E> factor);
  void (*scale_sums)(Acc<E>* dst, const Acc<E>* src, int64_t n, Acc<E> factor);
  // sums[r] += the sum over tokens of tile[r][...], in 16 interleaved partial sums per row.
  void (*row_sums)(Acc<E>* partial, const E* tile, int64_t lanes, int64_t rows, int64_t tokens);
  void (*column_sums)(Acc<E>* sums, const E* panel, int64_t pitch, int64_t tokens, int64_t columns);
  // result[lane] = sum over features of a * b.
  void (*delta)(Stat<E>* result, const E* a, const E* b, int64_t features, int64_t lanes);
  // result[lane] += sum over keys of a * b.
  void (*add_score_dot)(Stat<E>* result, const Acc<E>* a, const Acc<E>* b, int64_t keys,
                        int64_t lanes);
  bool (*finite)(const E* x, int64_t n);

  // Attention on tiles.
  void (*forward_block)(const ForwardBlock<E>&);
  // out = sums / (row_sum * (1 - dropout)); row_sum becomes its inverse; unseen rows become 0.
  void (*forward_end)(const ForwardBlock<E>&, Acc<E> keep_scale, E* out);
  void (*score_gradients)(const BackwardBlock<E>&);  // ds = gradient, [keys][lanes] on every set
  void (*backward_block)(const BackwardBlock<E>&);
  // sum (or =) factor * probabilities after dropout.
  void (*weights_block)(const Block<E>&, const Stat<E>* row_max, const Stat<E>* row_inv,
                        Acc<E> factor, Acc<E>* sum, bool accumulate);

  // Attention on rows: few queries, keys in lanes.
  void (*row_scores)(const RowScores<E>&);
  // One query: s = probabilities, where the bits of visible are set; see there.
  void (*softmax_row)(Acc<E>* s, int64_t keys, const uint64_t* visible, const uint64_t* keep,
                      Stat<E>* top, Stat<E>* sum);
  void (*exp2_all)(Acc<E>* x, int64_t n);

  // Masks.
  // words[c] bit r: the mask shows column c to row r. True in rows[r][c] hides iff true_hides.
  void (*visible_bits)(uint64_t* words, const uint8_t* const* rows, int64_t stride, int64_t columns,
                       bool true_hides);
  // The same for an additive mask and at most 64 columns: shown unless -inf. Returns whether it
  // adds anything but 0 to what it shows.
  bool (*visible_bits_additive)(uint64_t* words, const SourceRows& rows, int64_t columns);
  void (*additive_to_log2)(Acc<E>* x, int64_t n);  // times log2(e), finite values stay finite
};

struct KernelSet {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  DropoutKey (*dropout_key)(uint64_t seed, uint64_t counter);  // of all rows of a call
  void (*dropout_rows)(DropoutRows* rows, DropoutKey key, uint32_t batch, uint32_t head,
                       uint64_t first_query);
  // words[c] bit r: row r keeps key indices[c].
  void (*keep_bits)(uint64_t* words, const DropoutRows& rows, int64_t lanes,
                    const uint32_t* indices, int64_t keys, uint32_t threshold);
};

const KernelSet& baseline_kernels();
#if defined(MULTIHEAD_X86)
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#elif defined(MULTIHEAD_ARM64)
const KernelSet& neon_kernels();
#endif

}  // namespace multihead
