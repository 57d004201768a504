// Products between tokens and weights, tokens in lanes: in-projection, out-projection and the
// gradients of both. Weights are read where they lie; nothing of them is kept between calls.
#pragma once

#include "attention.h"

namespace multihead {

// Weights of H heads, (H, D, features), and their bias (H, D); features of out_proj come first
// in memory, but the axes are the same.
struct HeadWeights {
  View weight, bias;
  int64_t features() const { return weight.size[2]; }
};

// Where a projection puts the tiles of one set of weights.
template <class T>
struct ProjectionTarget {
  HeadWeights weights;
  T* tiles;
  bool by_head;  // keys and values; else by tile
};

template <class T>
class Projection {
 public:
  Projection(const Plan& plan, const Kernels<T>& kernels, WorkerMemory& memory, int workers)
      : plan_(plan), kernels_(kernels), memory_(memory), workers_(workers) {}

  // tiles[h] = weight[h] x^T + bias[h], for every target from one reading of x.
  void add_in(std::vector<Phase>& phases, const Rows<const T>& x, Tokens tokens,
              std::vector<ProjectionTarget<T>> targets);
  // The rows of bias_k and bias_v, and the zero row, behind the keys of every sequence.
  void add_extra_rows(std::vector<Phase>& phases, const View& bias_k, const View& bias_v, T* k,
                      T* v);
  // y = weight^T tiles + bias; weights is (H, D, features), bias (features).
  void add_out(std::vector<Phase>& phases, const HeadWeights& weights, const View& bias,
               const T* tiles, const Rows<T>& y);

  // Backward reads weights down their columns. Where those lie far apart, and for many tokens, a
  // copy that lies the other way round pays: its place, or the weights themselves.
  HeadWeights layout_turned(Arena& arena, const HeadWeights& weights) const;
  void add_turn(std::vector<Phase>& phases, const HeadWeights& weights, const HeadWeights& turned);
  // d_tiles = weight d_y^T, and delta = rowsum(d_tiles * tiles) of each head.
  void add_out_backward(std::vector<Phase>& phases, const HeadWeights& weights,
                        const Rows<const T>& d_y, const T* tiles, T* d_tiles, T* delta);
  // d_x = weight^T d_tiles, set or added; keys that padding hides get 0 where set.
  void add_in_backward(std::vector<Phase>& phases, const HeadWeights& weights, const T* d_tiles,
                       Tokens tokens, const Rows<T>& d_x, bool accumulate);
  // d_weight += d_tiles x, and d_bias += the sums of d_tiles (in-projection, both by row of
  // tiles) or d_bias += the sums of x (out-projection: by_column).
  void add_weight_gradient(std::vector<Phase>& phases, const T* tiles, Tokens tokens,
                           int64_t head_dim, const Rows<const T>& x, const View& d_weight,
                           const View& d_bias, bool by_column);
  // d_bias_k and d_bias_v += the gradients of the rows behind the keys.
  void add_bias_row_gradient(std::vector<Phase>& phases, const T* d_k, const T* d_v,
                             const View& d_bias_k, const View& d_bias_v);

 private:
  const std::vector<TileRef>& tiles(Tokens tokens) const {
    return tokens == Tokens::Queries ? plan_.query_tiles : plan_.key_tiles;
  }
  int64_t rows(Tokens tokens, const Rows<const T>& x, TileRef at, const T** rows) const {
    return tokens == Tokens::Queries ? x.of_queries(plan_, at, rows) : x.of_keys(plan_, at, rows);
  }
  int64_t lanes(Tokens tokens, TileRef at) const;       // of a tile
  int64_t first_lane(Tokens tokens, TileRef at) const;  // where it begins
  // How many parts the features of a tile go into, so that all workers have work.
  int64_t parts(int64_t tiles, int64_t most) const {
    const int64_t wanted = divide_up(6 * workers_, larger(tiles, 1));
    return wanted < 1 ? 1 : smaller(wanted, most);
  }
  void weight_gradient(int64_t row, int64_t rows, int64_t column, const T* tiles, Tokens tokens,
                       int64_t head_dim, const Rows<const T>& x, const View& d_weight,
                       const View& d_bias, bool by_column, Arena scratch) const;

  const Plan& plan_;
  const Kernels<T>& kernels_;
  WorkerMemory& memory_;
  int64_t workers_;
};

}  // namespace multihead
