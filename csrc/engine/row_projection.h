// Products between rows of tokens and weights, into rows of the caller's: what a step over cached
// keys does before attention and after it. The tokens of all sequences go together, so that weights
// are read once for them.
#pragma once

#include "packed_weights.h"
#include "rotation.h"
#include "scratch.h"

namespace multihead {

constexpr int64_t kFewTokens = 4;  // that read weights row by row, where they lie

// Tokens of a batch, as many of each sequence.
struct TokenGrid {
  int64_t batch = 0, tokens = 0;
  const int64_t* positions = nullptr;  // of each sequence's first token

  int64_t count() const { return batch * tokens; }
};

// Where the products with one set of weights go.
template <class E>
struct RowTarget {
  const PackedWeights<E>* weights;
  View y;                          // (N, groups, tokens, features of a group)
  const int64_t* first = nullptr;  // row of each sequence's first token; null: its first row
  bool turns = false;              // by the tokens' positions
};

template <class E>
class RowProjection {
 public:
  RowProjection(const Kernels<E>& kernels, const Rotation<E>& rotation, const TokenGrid& grid,
                const WorkerMemory& memory)
      : kernels_(kernels), rotation_(rotation), grid_(grid), memory_(memory) {}

  // y[n][g][token] = weight[g] x[n][token] + bias[g], for every target from one reading of x.
  void add(std::vector<Phase>& phases, const View& x, std::vector<RowTarget<E>> targets) const;
  // Bytes of a worker for tokens of so many features, and groups of so many.
  size_t scratch(int64_t features, int64_t group) const;

 private:
  struct Scratch;
  struct Part {
    int64_t tile, begin, end;  // tokens, and groups of all targets
  };
  void project(const Part& part, const View& x, const std::vector<RowTarget<E>>& targets,
               Arena arena) const;
  void multiply(const PackedWeights<E>& weights, int64_t group, int64_t tokens,
                const Scratch& scratch) const;
  void write(const RowTarget<E>& target, int64_t group, int64_t tile, const Acc<E>* sums) const;
  bool rows_are_read() const { return grid_.count() <= kFewTokens && kernels_.row_scores; }
  int64_t tokens_in(int64_t tile) const { return tile_tokens(grid_.count(), tile); }

  const Kernels<E>& kernels_;
  const Rotation<E>& rotation_;
  const TokenGrid grid_;
  const WorkerMemory& memory_;
};

}  // namespace multihead
