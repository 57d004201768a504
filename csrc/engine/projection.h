// Products between tokens and weights, tokens in lanes: the projections into heads and out of them,
// and the gradients of both.
#pragma once

#include "attention.h"
#include "keys.h"
#include "packed_weights.h"
#include "rotation.h"

namespace multihead {

// Where a projection into heads puts the tiles of one set of weights. Those of queries and keys are
// turned by their positions.
template <class E>
struct ProjectionTarget {
  const PackedWeights<E>& weights;  // rows by head
  E* tiles;
  TileOf what;  // keys and values lie by head, else by tile
};

// Tiles, and the weights through which they become rows.
template <class E>
struct ProjectionSource {
  const PackedWeights<E>& weights;  // rows are features
  const E* tiles;                   // by tile
};

// d_weight += d_tiles x, and d_bias += the sums of d_tiles, by row of them, or of x, by column.
template <class E>
struct WeightGradient {
  const E* tiles;  // by tile
  Tokens tokens;
  int64_t head_dim;
  View x;
  View d_weight, d_bias;  // (H, D, features), (H, D) or (features)
  bool bias_by_column;

  int64_t heads(const Plan& plan) const {
    return tokens == Tokens::Queries ? plan.heads.count : plan.heads.key_count;
  }
};

template <class E>
class Projection {
 public:
  Projection(const Plan& plan, const Kernels<E>& kernels, const Rotation<E>& rotation,
             const WorkerMemory& memory)
      : plan_(plan), kernels_(kernels), rotation_(rotation), memory_(memory) {}

  // tiles[h] = weight[h] x^T + bias[h], for every target from one reading of x.
  void add_in(std::vector<Phase>& phases, const View& x, Tokens tokens,
              std::vector<ProjectionTarget<E>> targets) const;
  // The rows of bias_k and bias_v, and the zero row, after the keys of every sequence.
  void add_extra_rows(std::vector<Phase>& phases, const View& bias_k, const View& bias_v,
                      const AttentionTiles<E>& tiles) const;
  // y = bias + the sum of weight^T tiles over the sources, set or added: the output, and the
  // gradient of an input. Keys that padding hides get 0 where set.
  void add_out(std::vector<Phase>& phases, std::vector<ProjectionSource<E>> sources, Tokens tokens,
               const View& y, bool accumulate) const;

  // d_out = weight d_y^T by head, and delta = rowsum(d_out * out).
  void add_out_backward(std::vector<Phase>& phases, const PackedWeights<E>& weights,
                        const View& d_y, const GradientTiles<E>& tiles) const;
  void add_weight_gradient(std::vector<Phase>& phases, const WeightGradient<E>& gradient) const;
  // d_bias_k and d_bias_v += the gradients of the rows after the keys.
  void add_extra_rows_backward(std::vector<Phase>& phases, const GradientTiles<E>& tiles,
                               const View& d_bias_k, const View& d_bias_v) const;

  // Bytes of a worker: for tokens of so many features; for a gradient.
  size_t scratch(int64_t features) const;
  size_t scratch(const WeightGradient<E>& gradient) const;

 private:
  // What one task does: some tiles of tokens, and a share of the weights, as heads or as groups of
  // features. Weights are read once for all the tiles.
  struct Part {
    const TileRef* tiles;
    int64_t count;
    int64_t begin, end;  // of the weights
  };
  struct Scratch;     // of a task between tokens and weights
  struct TileRange;   // of the rows and columns of a weight gradient: what one task sums
  struct Cut;         // of a weight gradient into tasks
  struct SumScratch;  // of a task

  int64_t lanes(Tokens tokens, TileRef at) const {
    const Sequence& s = plan_.sequence(at);
    return tile_lanes(tokens == Tokens::Queries ? s.queries : s.attended_keys, at.tile);
  }
  // Where all heads' tiles of some tokens begin, with `features` of all heads.
  int64_t tile_begin(Tokens tokens, TileRef at, int64_t rows) const {
    const Sequence& s = plan_.sequence(at);
    return ((tokens == Tokens::Queries ? s.query_lane : s.key_lane) + at.tile * kTile) * rows;
  }
  TokenRows rows(const View& x, Tokens tokens, TileRef at) const {
    return token_rows(x, plan_.sequence(at), at.sequence, tokens);
  }
  // Of a tile of queries or of keys, and of both where they are the same tokens.
  TileAt place(TileRef at, int64_t head) const {
    return {plan_.sequence(at), at.sequence, head, at.tile, at.tile};
  }
  // A phase with tasks for parts of all tiles; each does a share of `units` of the weights.
  template <class F>
  Phase by_tile(Tokens tokens, int64_t units, F run) const;
  void clear_hidden(const View& y, int64_t sequence, int64_t features) const;
  void in(const Part& part, const View& x, Tokens tokens,
          const std::vector<ProjectionTarget<E>>& targets, Arena arena) const;
  void into_heads(const Part& part, Tokens tokens, const ProjectionTarget<E>& target,
                  const Scratch& scratch) const;
  void out(const Part& part, const std::vector<ProjectionSource<E>>& sources, Tokens tokens,
           const View& y, bool accumulate, Arena arena) const;
  void out_backward(const Part& part, const PackedWeights<E>& weights, const View& d_y,
                    const GradientTiles<E>& tiles, Arena arena) const;
  void combine(const Part& part, const std::vector<ProjectionSource<E>>& sources, Tokens tokens,
               Acc<E>* sums, Prefetch* last) const;
  int64_t tiles_at_once(Tokens tokens) const;
  int64_t rows_of_sums() const;
  void pack(const View& x, Tokens tokens, TileRef at, E* tile) const;
  Acc<E>* sums_of(const Scratch& scratch, E* tile) const;
  void settle(const TileGemm<E>& product, E* tile, TileOf what) const;
  void weight_gradient(const TileRange& range, const WeightGradient<E>& gradient,
                       const SumScratch& sums) const;
  struct SomeTiles {  // tiles of tokens, one after another
    const std::vector<TileRef>* tiles;
    size_t begin, end;
  };
  int64_t tokens_at_once() const;
  void sum_tokens(const SomeTiles& some, bool adds, const TileRange& range,
                  const WeightGradient<E>& gradient, const SumScratch& sums) const;
  void add_sums(const TileRange& range, const WeightGradient<E>& gradient,
                const SumScratch& sums) const;

  const Plan& plan_;
  const Kernels<E>& kernels_;
  const Rotation<E>& rotation_;
  const WorkerMemory& memory_;
};

}  // namespace multihead
