// What a kernel set offers: one table of functions per dtype, filled once per ISA.
//
// Tiles hold 64 tokens (or fewer: a multiple of 16) in SIMD lanes and features in rows, so every
// sum runs over rows, in an order that no ISA, tile shape or thread count changes.
#pragma once

#include <stdint.h>

namespace multihead {

constexpr int64_t kTile = 64;  // tokens in a tile, and bits in a mask word
constexpr int64_t kLane = 16;  // lanes of a tile are a multiple of this on every ISA

// What the accumulators of a product start from.
enum class Init : int { Zero, Load, LoadScaled, Bias };

// Memory that is wanted soon. Products ask for it line by line while they multiply.
struct Range {
  const char* at;
  int64_t lines;  // of 64 bytes
};
struct Ahead {
  Range now{nullptr, 0};
  const Range *next = nullptr, *end = nullptr;  // more, in this order
};

// Weights as products like to read them: panels of 6 rows, 128 elements of k at a time. Row r,
// element k of m rows is at [k / 128][r / 6][k % 128][r % 6].
constexpr int64_t kPanelRows = 6;
constexpr int64_t kDepth = 128;  // rows of b that stay in L1
constexpr int64_t panel_rows(int64_t m) { return (m + kPanelRows - 1) / kPanelRows * kPanelRows; }

// c[m][lanes] = init + a[m][k] * b[k][lanes]; strides count elements.
template <class T>
struct Gemm {
  int64_t m, lanes, k;
  const T* a;
  int64_t a_row, a_k;  // in panels: the rows of all panels, nothing
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  Init init = Init::Zero;
  const T* start = nullptr;  // LoadScaled: a factor per lane. Bias: a value per row
  int64_t start_stride = 1;  // of Bias
  Ahead* ahead = nullptr;
  bool panels = false;  // how a lies
};

// One block of queries against one tile of keys.
template <class T>
struct Block {
  int64_t head_dim, value_dim;
  int64_t lanes;  // queries, rounded up
  const T* q;     // [head_dim][lanes], scaled by scale * log2(e)
  const T* k;     // [head_dim][key_lanes]
  const T* v;     // [value_dim][key_lanes]
  int64_t key_lanes, keys;
  const uint64_t* visible;  // a word per key, a bit per query; null: all
  const T* bias;            // [keys][lanes], log2 units; null: none
  const T* key_bias;        // [keys], log2 units; null: none
  const uint64_t* keep;     // like visible, drawn by dropout; null: all
  T* s;                     // [keys][lanes]: scores, then probabilities
  Ahead* ahead = nullptr;   // what the caller wants next
};

template <class T>
struct ForwardBlock : Block<T> {
  T* out;                // [value_dim][lanes], not yet divided by row_sum
  T *row_max, *row_sum;  // [lanes]
  uint64_t* seen;        // queries that saw a key so far
  bool first;
};

template <class T>
struct BackwardBlock : Block<T> {
  const T *row_max, *row_inv, *delta;  // [lanes]
  const T* d_out;                      // [value_dim][lanes], scaled by 1 / (1 - dropout)
  const T* d_weights;                  // [keys][lanes], scaled likewise; null: none
  const T *q_rows, *d_out_rows;        // [queries][head_pitch], [queries][value_pitch]
  int64_t head_pitch, value_pitch, queries;
  bool finite;   // no NaN or infinity in q and d_out
  T* ds;         // [keys][lanes]: gradient of the scores
  T *d_k, *d_v;  // [keys][head_pitch], [keys][value_pitch]: accumulated
  T* d_q;        // [head_dim][lanes]: accumulated
};

// The random words of a call: pure functions of positions, see dropout.h.
struct DropoutRows {
  uint32_t low[kTile], high[kTile];
};

template <class T>
struct Kernels {
  void (*gemm)(const Gemm<T>&);

  // dst[c][r] = rows[r][c * stride], zero where rows[r] is null; r < lanes.
  void (*pack)(T* dst, int64_t dst_row, int64_t lanes, const T* const* rows, int64_t stride,
               int64_t columns);
  // rows[r][c * stride] = (or +=) src[c][r]; rows that are null are left alone.
  void (*unpack)(T* const* rows, int64_t stride, const T* src, int64_t src_row, int64_t lanes,
                 int64_t columns, bool accumulate);
  // dst[r][c] = rows[r][c * stride] for c < columns, zero up to pitch; r < count.
  void (*gather)(T* dst, int64_t pitch, const T* const* rows, int64_t stride, int64_t columns,
                 int64_t count);
  // dst[c][r] = scale * src[r][c] for r < rows, zero up to dst_columns; c < columns.
  void (*transpose)(T* dst, int64_t dst_row, int64_t dst_columns, const T* src, int64_t src_row,
                    int64_t rows, int64_t columns, T scale);
  void (*scale)(T* dst, const T* src, int64_t n, T factor);       // dst = factor * src
  void (*add_scaled)(T* dst, const T* src, int64_t n, T factor);  // dst += factor * src
  // sums[r] += the sum over tokens of tile[r][...], in 16 interleaved partial sums per row.
  void (*row_sums)(T* partial, const T* tile, int64_t tile_row, int64_t rows, int64_t count);
  void (*column_sums)(T* sums, const T* rows, int64_t pitch, int64_t count, int64_t columns);
  // result[lane] = sum over rows of a * b.
  void (*delta)(T* result, const T* a, const T* b, int64_t rows, int64_t lanes);
  bool (*finite)(const T* x, int64_t n);

  void (*forward_block)(const ForwardBlock<T>&);
  // out /= row_sum * (1 - dropout); row_sum becomes its inverse; unseen rows become 0.
  void (*forward_end)(const ForwardBlock<T>&, T keep_scale, T* out, int64_t out_row);
  void (*score_gradients)(const BackwardBlock<T>&);  // s = probabilities kept, ds = gradient
  void (*backward_block)(const BackwardBlock<T>&);
  // sum (or =) factor * probabilities after dropout.
  void (*weights_block)(const Block<T>&, const T* row_max, const T* row_inv, T factor, T* sum,
                        bool accumulate);

  // s[i][j] = q[i] . k[j], keys in rows; q and s are padded to multiples of 16.
  void (*row_scores)(T* s, int64_t s_row, const T* q, int64_t q_row, int64_t queries, const T* k,
                     int64_t k_row, int64_t keys, int64_t head_dim);
  // One query, keys in lanes: s = probabilities, where the bits of visible are set; see there.
  void (*softmax_row)(T* s, int64_t keys, const uint64_t* visible, const uint64_t* keep, T* top,
                      T* sum);
  void (*exp2_all)(T* x, int64_t n);

  // words[c] bit r: the mask shows column c to row r. True in rows[r][c] hides iff true_hides.
  void (*visible_bits)(uint64_t* words, const uint8_t* const* rows, int64_t stride, int64_t columns,
                       bool true_hides);
  // The same for an additive mask and at most 64 columns: shown unless -inf. Returns whether it
  // adds 0 to all that it shows.
  bool (*visible_bits_additive)(uint64_t* words, const T* const* rows, int64_t stride,
                                int64_t columns);
  void (*additive_to_log2)(T* tile, int64_t n);  // times log2(e), finite values stay finite
};

struct KernelSet {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  void (*dropout_rows)(DropoutRows* rows, const uint32_t call_key[2], uint32_t batch, uint32_t head,
                       uint64_t first_query);
  // words[c] bit r: row r keeps key indices[c].
  void (*keep_bits)(uint64_t* words, const DropoutRows& rows, int64_t lanes,
                    const uint32_t* indices, int64_t keys, uint32_t threshold);
  double (*fma_rate)(int64_t iterations, bool f64);  // runs FMAs; returns how many flops
};

const KernelSet& baseline_kernels();
#if defined(MULTIHEAD_X86)
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#elif defined(MULTIHEAD_ARM64)
const KernelSet& neon_kernels();
#endif

}  // namespace multihead
