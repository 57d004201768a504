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

// What a product is added to: nothing, what was there, that times a factor, or the bias.
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
  int64_t row, k;       // strides; packed: the rows of all panels, nothing; where E rounds, k
  bool packed = false;  // in panels; where E rounds, as LeftLayout says
  // In place of data, for tile_gemm alone: rows of another type, each side by side.
  const void* stored = nullptr;
  DType type = DType::Float32;
};

// c[m][lanes] = init + a[m][k] . b[k][lanes]: weights times a tile.
template <class E>
struct TileGemm {
  int64_t m, k, lanes;           // k: rows as b has them, with what fills them up
  Left<E> a;                     // 0 there
  const E* b;                    // a tile
  Acc<E>* c;                     // sums
  Init init;                     // Zero, Load or Bias
  const Acc<E>* bias = nullptr;  // a value per row
  int64_t bias_stride = 1;
  int64_t room = 0;  // rows from m to here may be read of a and written to c
  Prefetch* prefetch = nullptr;
};

// c[m][columns] (+)= a[m][tokens] . b[tokens][columns]: features of tokens times gathered tokens.
template <class E>
struct TokenGemm {
  int64_t m, tokens, columns;
  const E* a;  // of feature_rows, a_row apart
  int64_t a_row;
  const E* b;  // of gather_tokens, `columns` apart, from its first token on
  Acc<E>* c;   // [m][columns]
  bool adds;
  Prefetch* prefetch;
};

// Rows of tokens side by side in an array of the caller's, `row` elements apart.
struct StoredRows {
  const void* data;
  int64_t row;
  DType type;
};

// c[queries][columns] += p[queries][keys] . v[keys][columns]: all in rows.
template <class E>
struct RowGemm {
  int64_t queries, keys, columns;
  const Acc<E>* p;
  int64_t p_row;
  StoredRows v;
  Acc<E>* c;  // [queries][columns], added to
};

// s[queries][keys] = q[queries][head_dim] . k[keys][head_dim]: few queries, and keys where they
// lie.
template <class E>
struct RowScores {
  int64_t queries, keys, head_dim;  // at most four queries
  const E* q;
  int64_t q_row;
  StoredRows k;
  Acc<E>* s;
  int64_t s_row;                 // with room up to a multiple of 16 keys
  const Acc<E>* bias = nullptr;  // [keys]: added to the scores of all queries; null: 0
};

// One query's products with keys, made scores in log2 units as rules change them: see Block.
template <class E>
struct RowRules {
  Acc<E>* s;
  int64_t keys;   // with room up to a multiple of 16 of scores and distances
  Acc<E> factor;  // scale * log2(e)
  Acc<E> softcap = 0, slope = 0;
  const Acc<E>* distance = nullptr;
  Acc<E> query = 0;  // which of the queries it is
};

// One query's scores s become probabilities kept (not divided by their sum), 0 where a bit of
// visible is 0. A word and a factor for each kTile of them.
template <class E>
struct RowSoftmax {
  Acc<E>* s;
  int64_t keys;                    // a multiple of kTile
  const Acc<E>* factors;           // s times its factor is in log2 units
  const uint64_t *visible, *keep;  // null: all are kept
  Stat<E>*top, *sum;               // of the scores, in log2 units; of the probabilities
};

// Pairs of features of a tile's sums, turned by the angles of their tokens.
template <class A>
struct Rotate {
  A* x;  // [features][lanes]
  int64_t lanes, pairs;
  int64_t step, apart;     // rows from a pair to the next, and from a pair's first to its second
  const A *cosine, *sine;  // [pairs][lanes], rows `row` apart
  int64_t row;
  bool back;
};

// A tile of keys or values; or, on a set that reads them so, rows where they lie.
template <class E>
struct KeyTile {
  const E* data = nullptr;
  int64_t row = 0;  // from a row to the next, in elements; 0: a tile
};

// One block of queries against one tile of keys.
template <class E>
struct Block {
  int64_t head_dim, value_dim;
  int64_t lanes;  // queries, rounded up
  const E* q;     // tile of head_dim
  KeyTile<E> k;   // keys of head_dim, key_lanes; lanes from `keys` on hold anything
  KeyTile<E> v;   // values of value_dim, key_lanes, likewise
  int64_t key_lanes, keys;
  const uint64_t* visible;           // a word per key, a bit per query; null: all
  const Acc<E>* bias;                // [keys][lanes], log2 units; null: none
  const Acc<E>* key_bias;            // [keys], log2 units; null: none
  const uint64_t* keep;              // like visible, drawn by dropout; null: all
  Acc<E> score_factor = 1;           // |scale| * log2(e), of the products with q
  Acc<E> softcap = 0;                // log2 units; 0: none
  Acc<E> slope = 0;                  // of ALiBi, log2 units
  const Acc<E>* distance = nullptr;  // [given_keys]: from the first query to a key; null: no ALiBi
  int64_t given_keys = 0;            // that have a distance
  Acc<E>* cap_slope = nullptr;       // [keys][lanes]: the derivative of the cap; set, if wanted
  // Both are the set's own, and hold anything after a call, unless the function says otherwise.
  Acc<E>* s;                     // [keys][lanes]: scores
  E* p;                          // [keys][lanes]: probabilities; the memory of s where E is Acc
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
  const E* d_out;                  // tile of value_dim, scaled by 1 / (1 - dropout) unless E rounds
  Acc<E> gradient_factor = 1;      // where E rounds: 1 / (1 - dropout), of the products with d_out
  KeyTile<E> k_columns, v_tokens;  // of columns_of_keys, tokens_of_values
  const Acc<E>* d_weights;         // [keys][lanes], scaled likewise; null: none
  const E *q_rows, *d_out_rows;    // of tile_to_rows: head_pitch, value_pitch apart
  int64_t head_pitch, value_pitch, queries;
  bool finite;  // no NaN or infinity in q and d_out
  Acc<E>* d_p;  // [keys][lanes]: gradient of the probabilities
  // [keys][lanes]: gradient of the scores, in as many forms as products read it; see s. The memory
  // of d_p where E is Acc.
  E *ds, *ds_columns;
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

// What a tile holds: keys and values lie as attention reads them, all else as products with weights
// do.
enum class TileOf { Tokens, Keys, Values };

template <class E>
struct Kernels {
  TileLayout layout, key_layout, value_layout;  // all of the same size
  LeftLayout left;                              // of packed weights, where E rounds
  bool sums_are_tiles;  // tile_gemm's c is a tile: nothing need turn it into one
  bool reads_rows;      // attention takes keys and values as rows too: see KeyTile
  // Products over tokens take the tokens of a tile in steps, and so many tiles at a time.
  int64_t token_step, token_tiles;

  const TileLayout& layout_of(TileOf what) const {
    return what == TileOf::Keys ? key_layout : what == TileOf::Values ? value_layout : layout;
  }

  // Products.
  void (*tile_gemm)(const TileGemm<E>&);
  void (*token_gemm)(const TokenGemm<E>&);
  void (*row_gemm)(const RowGemm<E>&);

  // Between rows of features, the caller's arrays, and tiles. Rows that are null are 0, or left
  // alone.
  void (*pack)(E* tile, int64_t lanes, const SourceRows& rows, int64_t features, TileOf what);
  void (*unpack)(const TargetRows& rows, const E* tile, int64_t lanes, int64_t features,
                 bool accumulate);
  // The same for [columns][lanes], as scores and sums lie.
  void (*pack_scores)(Acc<E>* scores, int64_t lanes, const SourceRows& rows, int64_t columns);
  void (*unpack_sums)(const TargetRows& rows, const Acc<E>* sums, int64_t lanes, int64_t columns,
                      bool accumulate);
  // A tile from sums [features][lanes]: what becomes an element is rounded here.
  void (*tile_of_sums)(E* tile, const Acc<E>* sums, int64_t lanes, int64_t features, TileOf what);
  // Tokens in rows, zero from `columns` up to pitch: for products over tokens, `group` neighbours
  // together as features in a tile, the last step filled up with zeros; and as they are.
  void (*gather_tokens)(E* panel, int64_t pitch, const SourceRows& rows, int64_t columns,
                        int64_t tokens);
  void (*gather_rows)(E* dst, int64_t pitch, const SourceRows& rows, int64_t columns,
                      int64_t count);
  // to[c][r] = from[r][c]; rows of `to` are to_row apart.
  void (*transpose)(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t rows,
                    int64_t columns);
  // The first of the rows += sums.
  void (*add_to_row)(const TargetRows& row, const Acc<E>* sums, int64_t n);
  // Tokens in rows for products over tokens, scaled; zero from `features` up to pitch.
  void (*tile_to_rows)(E* dst, int64_t pitch, const E* tile, int64_t lanes, int64_t features,
                       Acc<E> scale);
  // And back, from rows of sums; tokens from `count` up to lanes are 0.
  void (*rows_to_tile)(E* tile, int64_t lanes, const Acc<E>* rows, int64_t pitch, int64_t count,
                       int64_t features, Acc<E> scale);
  // A tile as other products read it, written to `to` or, where it lies so, itself: [features]
  // with `tokens` of them side by side, zeros up to the step, `pitch` apart (which becomes that of
  // the result); keys as values lie; values as keys do.
  const E* (*feature_rows)(E* to, int64_t& pitch, const E* tile, int64_t lanes, int64_t features,
                           int64_t tokens);
  const E* (*columns_of_keys)(E* to, const E* keys, int64_t lanes, int64_t features);
  const E* (*tokens_of_values)(E* to, const E* values, int64_t lanes, int64_t features);

  // Small passes.
  void (*rotate)(const Rotate<Acc<E>>&);
  void (*scale)(E* dst, const E* src, int64_t n, Acc<E> factor);
  void (*add_scaled)(Acc<E>* dst, const Acc<E>* src, int64_t n, Acc<E> factor);
  void (*scale_sums)(Acc<E>* dst, const Acc<E>* src, int64_t n, Acc<E> factor);
  // sums[r] += the sum over tokens of rows[r][...], in 16 interleaved partial sums per row.
  void (*row_sums)(Acc<E>* partial, const E* rows, int64_t pitch, int64_t count, int64_t tokens);
  void (*column_sums)(Acc<E>* sums, const E* panel, int64_t pitch, int64_t tokens, int64_t columns);
  // result[lane] = sum over features of a * b.
  void (*delta)(Stat<E>* result, const E* a, const E* b, int64_t features, int64_t lanes);
  // result[lane] += sum over keys of a * b.
  void (*add_score_dot)(Stat<E>* result, const Acc<E>* a, const Acc<E>* b, int64_t keys,
                        int64_t lanes);
  bool (*finite)(const E* x, int64_t n);
  bool (*rows_are_finite)(const StoredRows& rows, int64_t count, int64_t columns);

  // Attention on tiles.
  void (*forward_block)(const ForwardBlock<E>&);
  // The same queries' results with other keys join the first.
  void (*forward_merge)(const ForwardBlock<E>&, const ForwardBlock<E>& part);
  // out = sums / (row_sum * (1 - dropout)); row_sum becomes its inverse; unseen rows become 0.
  void (*forward_end)(const ForwardBlock<E>&, Acc<E> keep_scale, E* out);
  void (*score_gradients)(const BackwardBlock<E>&);  // d_p = gradient of the scores, on every set
  void (*backward_block)(const BackwardBlock<E>&);
  // sum (or =) factor * probabilities after dropout.
  void (*weights_block)(const Block<E>&, const Stat<E>* row_max, const Stat<E>* row_inv,
                        Acc<E> factor, Acc<E>* sum, bool accumulate);

  // Attention on rows: few queries, keys in lanes.
  void (*row_scores)(const RowScores<E>&);
  // One query: rules; s = probabilities, where the bits of visible are set; see there.
  void (*row_rules)(const RowRules<E>&);
  void (*softmax_row)(const RowSoftmax<E>&);
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
  const Kernels<BFloat16>* bf16;  // null: bfloat16 is computed in float
  // Before and after a thread runs kernels of bfloat16; null: nothing to do.
  void (*enter)();
  void (*leave)();
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
const KernelSet& avx512_bf16_kernels();
const KernelSet& amx_kernels();
#elif defined(MULTIHEAD_ARM64)
const KernelSet& neon_kernels();
const KernelSet& neon_bf16_kernels();
#endif

}  // namespace multihead
