// Products between tokens and weights, tokens in lanes: in-projection, out-projection and the
// gradients of both. Weights are read where they lie; nothing of them is kept between calls.
#pragma once

#include "attention.h"
#include "factor.h"

namespace multihead {

// Where a projection puts the tiles of one set of weights.
template <class T>
struct ProjectionTarget {
  Factor<T> weights;  // rows by head
  T* tiles;
  bool by_head;  // keys and values; else by tile
};

struct Cut;  // of a weight gradient into tasks
struct Span {
  int64_t first, count;
};

// Tiles, and the weights through which they become rows.
template <class T>
struct ProjectionSource {
  Factor<T> weights;  // rows are features
  const T* tiles;     // by tile
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
  // y = bias + the sum of weight^T tiles over the sources, set or added: the output, and the
  // gradient of an input. Keys that padding hides get 0 where set.
  void add_out(std::vector<Phase>& phases, std::vector<ProjectionSource<T>> sources, Tokens tokens,
               const Rows<T>& y, bool accumulate);

  // d_tiles = weight d_y^T, and delta = rowsum(d_tiles * tiles) of each head; rows by head.
  void add_out_backward(std::vector<Phase>& phases, const Factor<T>& weights,
                        const Rows<const T>& d_y, const T* tiles, T* d_tiles, T* delta);
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
  // block[rows of weights][lanes] = the sum of weights . tile over the sources, for some groups.
  void combine(const std::vector<ProjectionSource<T>>& sources, Tokens tokens, TileRef at,
               int64_t begin, int64_t end, T* block, Ahead* last) const;
  // The first task of each sequence, with `split` tasks for a tile.
  std::vector<int64_t> begins(Tokens tokens, int64_t split) const;
  // How many parts the features of a tile go into, so that all workers have work.
  int64_t parts(int64_t tiles, int64_t most) const {
    const int64_t wanted = divide_up(6 * workers_, larger(tiles, 1));
    return wanted < 1 ? 1 : smaller(wanted, most);
  }
  void weight_gradient(Span row, Span column, const Cut& cut, const T* tiles, Tokens tokens,
                       int64_t head_dim, const Rows<const T>& x, const View& d_weight,
                       const View& d_bias, bool by_column, Arena arena) const;

  const Plan& plan_;
  const Kernels<T>& kernels_;
  WorkerMemory& memory_;
  int64_t workers_;
};

}  // namespace multihead
