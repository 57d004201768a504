// Fused attention on tiles: forward, backward and weights, without an L x S matrix.
//
// Computes: out = dropout(softmax(scale * q k^T + masks)) v for each head of each sequence, and
// keeps two numbers per row: the largest score m (log2 units) and 1 / l, l = sum exp2(s - m).
// Backward makes the scores anew from them, so it also accepts statistics and deltas that come
// from a larger problem of which this one is a part.
#pragma once

#include "mask.h"
#include "wanted.h"

namespace multihead {

// Queries, outputs and their gradients lie by tile, keys and values by head (see plan.h).
template <class T>
struct AttentionTiles {
  T *q, *k, *v, *out;
  T *row_max, *row_inv;  // see Plan::query_row; +inf and 0 where there is nothing to see
};

template <class T>
struct GradientTiles {
  T* d_out;
  T* delta;            // rowsum(d_out * out), laid out like row_max
  T *d_q, *d_k, *d_v;  // all by tile
};

// Attention weights of a batch, one head (the average) or all of them.
struct WeightsView {
  View view;          // dense: (N, 1 or H, L, S'); ragged: flat, see Sequence::weights
  int64_t heads = 0;  // 0: not wanted

  template <class T>
  T* row(const Plan& plan, int64_t batch, int64_t head, int64_t query) const;
  int64_t stride() const { return view.rank == 4 ? view.stride[3] : 1; }
};

// Memory of the workers, each task takes from its worker's part anew.
class WorkerMemory {
 public:
  void need(size_t bytes) { each_ = bytes > each_ ? round_up(int64_t(bytes), 4096) : each_; }
  void layout(Arena& arena, int workers) { base_ = arena.take<char>(int64_t(each_) * workers); }
  Arena of(int worker) const { return Arena(base_ + size_t(worker) * each_); }

 private:
  size_t each_ = 0;
  char* base_ = nullptr;
};

template <class T>
class Attention {
 public:
  Attention(const Plan& plan, const Kernels<T>& kernels, const Masks<T>& masks, double scale,
            WorkerMemory& memory);

  // To be called first: tasks in the order of sequences, for phases that are fused.
  void go_by_sequence() { by_sequence_ = true; }
  void add_forward(std::vector<Phase>& phases, const AttentionTiles<T>& tiles);
  void add_weights(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                   const WeightsView& weights);

  // delta must be there. With d_weights, adds their share to it first.
  void layout_backward(Arena& arena, int workers);
  void add_backward(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                    const GradientTiles<T>& gradients, const WeightsView& d_weights, int workers);
  // The gradient of an additive mask, summed over the axes of size 1: (1|N, 1|H, 1|L, 1|S).
  void add_mask_gradient(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                         const GradientTiles<T>& gradients, const WeightsView& d_weights,
                         const View& d_mask);

 private:
  struct Item {
    int32_t sequence, head, part;
  };
  struct QueryBlock;  // what the tasks of backward share about one block of queries

  std::vector<Item> items(bool per_tile) const;
  std::vector<int64_t> begins(int64_t heads, bool per_tile) const;  // of a phase over items
  void fill(Block<T>& block, const AttentionTiles<T>& tiles, const Sequence& s, int64_t head,
            int64_t query_tile) const;
  void at_key_tile(Block<T>& block, const AttentionTiles<T>& tiles, const Sequence& s, int64_t head,
                   int64_t key_tile, const TileMask<T>& mask) const;
  template <int N>
  void want_keys(Wanted<N>& wanted, const AttentionTiles<T>& tiles, const Sequence& s, int64_t head,
                 int64_t key_tile) const {
    if (key_tile >= tiles_of(plan_.rows(s))) return;
    const int64_t lanes = tile_lanes(plan_.rows(s), key_tile);
    const int64_t D = plan_.head_dim, Dv = plan_.value_dim;
    wanted.add(tiles.k + plan_.key_tile_by_head(s, head, key_tile, D), D * lanes);
    wanted.add(tiles.v + plan_.key_tile_by_head(s, head, key_tile, Dv), Dv * lanes);
  }
  void forward(const Item& item, const AttentionTiles<T>& tiles, Arena scratch) const;
  void weights(const Item& item, int64_t heads, const AttentionTiles<T>& tiles,
               const WeightsView& weights, Arena scratch) const;
  void add_delta(const Item& item, const AttentionTiles<T>& tiles,
                 const GradientTiles<T>& gradients, const WeightsView& d_weights,
                 Arena scratch) const;
  void backward(const Item& item, const Item* next, int64_t first_group, int64_t groups,
                const AttentionTiles<T>& tiles, const GradientTiles<T>& gradients,
                const WeightsView& d_weights, Arena scratch) const;
  void want(Wanted<8>& wanted, const Item& item, const Item* next_item,
            const AttentionTiles<T>& tiles, const GradientTiles<T>& gradients, int64_t group,
            int64_t tile, int64_t t) const;
  void fold(const Item& item, const GradientTiles<T>& gradients) const;
  void mask_gradient(int64_t task, const AttentionTiles<T>& tiles,
                     const GradientTiles<T>& gradients, const WeightsView& d_weights,
                     const View& d_mask, Arena scratch) const;
  void load_weights(const WeightsView& weights, const Sequence& s, int64_t batch, int64_t head,
                    int64_t query_tile, int64_t key_tile, T factor, T* tile) const;
  int64_t group_tiles(const Sequence& s) const;
  int64_t groups_of(const Sequence& s) const;
  T* partial_tile(const Sequence& s, size_t sequence, int64_t head, int64_t group,
                  int64_t tile) const;

  const Plan& plan_;
  const Kernels<T>& kernels_;
  const Masks<T>& masks_;
  T scale_;
  WorkerMemory& memory_;
  int64_t head_pitch_, value_pitch_;
  bool by_sequence_ = false;
  bool split_ = false;  // groups of keys go to different tasks
  T* partial_ = nullptr;
  std::vector<int64_t> partial_begin_;
};

}  // namespace multihead
