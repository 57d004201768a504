// Fused attention on tiles: forward, backward and weights, without an L x S matrix.
//
// Computes: out = dropout(softmax(scale * q k^T + masks)) v for each head of each sequence, with
// what else spec.h says of scores, and
// keeps two numbers per row: the largest score m (log2 units) and 1 / l, l = sum exp2(s - m).
// Backward makes the scores anew from them, so it also accepts statistics and deltas that come
// from a larger problem of which this one is a part.
#pragma once

#include "keys.h"
#include "masks.h"
#include "prefetch.h"
#include "rotation.h"
#include "scratch.h"

namespace multihead {

// Arrays of the caller's, (N, heads, tokens, features), where they take the place of tiles.
struct CallerArrays {
  View q, k, v, out, d_out;
  bool gradients = false;  // go to these, if they are wanted
  View d_q, d_k, d_v;
};

// Queries, outputs and their gradients lie by tile, keys and values by head (see plan.h); or where
// the caller has them.
template <class E>
struct AttentionTiles {
  E *q = nullptr, *k = nullptr, *v = nullptr, *out = nullptr;
  CallerArrays in_place;
  Stat<E>*row_max = nullptr, *row_inv = nullptr;  // Plan::query_row; +inf and 0: nothing to see

  void layout_inputs(Arena& arena, const Plan& plan) {
    if (!in_place.q) q = arena.take<E>(plan.query_elements(plan.heads.dim));
    if (!in_place.k) k = arena.take<E>(plan.key_elements(plan.heads.dim));
    if (!in_place.v) v = arena.take<E>(plan.key_elements(plan.heads.value_dim));
  }
  void layout_results(Arena& arena, const Plan& plan) {
    if (!in_place.out) out = arena.take<E>(plan.query_elements(plan.heads.value_dim));
    layout_statistics(arena, plan);
  }
  void layout_statistics(Arena& arena, const Plan& plan) {
    row_max = arena.take<Stat<E>>(plan.query_lanes * plan.heads.count);
    row_inv = arena.take<Stat<E>>(plan.query_lanes * plan.heads.count);
  }
  KeyTile<E> keys(const Plan& plan, const TileAt& at) const {
    if (in_place.k) return rows_of(in_place.k, plan, at);
    return {k + plan.key_tile_by_head(at, plan.heads.dim)};
  }
  KeyTile<E> values(const Plan& plan, const TileAt& at) const {
    if (in_place.v) return rows_of(in_place.v, plan, at);
    return {v + plan.key_tile_by_head(at, plan.heads.value_dim)};
  }

 private:
  static KeyTile<E> rows_of(const View& view, const Plan& plan, const TileAt& at) {
    const StoredRows rows = head_rows(view, at.sequence, Tokens::Keys, at.batch, plan.key_head(at))
                                .stored(at.first_key());
    return {static_cast<const E*>(rows.data), rows.row};
  }
};

// Attention weights of a batch, one head (the average) or all of them, or their gradient.
struct WeightsView {
  View view;          // dense: (N, 1 or H, L, S'); ragged: flat, see Sequence::pairs
  int64_t heads = 0;  // 0: not wanted

  void* row(const Plan& plan, const TileAt& at, int64_t query) const;
  int64_t stride() const { return view.rank == 4 ? view.stride[3] : 1; }
  // The part of a head's weight in what is returned.
  double share(const Plan& plan) const { return heads == 1 ? 1.0 / double(plan.heads.count) : 1.0; }
};

template <class E>
struct GradientTiles {
  AttentionTiles<E> forward;
  WeightsView d_weights;
  E* d_out = nullptr;
  Stat<E>* delta = nullptr;                          // rowsum(d_out * out), like row_max
  E *d_q = nullptr, *d_k = nullptr, *d_v = nullptr;  // all by tile

  void layout(Arena& arena, const Plan& plan) {
    if (!forward.in_place.d_out) d_out = arena.take<E>(plan.query_elements(plan.heads.value_dim));
    delta = arena.take<Stat<E>>(plan.query_lanes * plan.heads.count);
    if (forward.in_place.gradients) return;
    d_q = arena.take<E>(plan.query_elements(plan.heads.dim));
    d_k = arena.take<E>(plan.key_elements(plan.heads.dim));
    d_v = arena.take<E>(plan.key_elements(plan.heads.value_dim));
  }
};

// What a call is prepared with before attention is.
template <class E>
struct Prepared {
  const Plan& plan;
  const Kernels<E>& kernels;
  const Masks<E>& masks;
  const Rotation<E>& rotation;
  const WorkerMemory& memory;
};

template <class E>
class Attention {
 public:
  Attention(const Prepared<E>& call, const ScoreRules& rules);

  // To be called first: tasks in the order of sequences, for phases that are fused.
  void go_by_sequence() { by_sequence_ = true; }

  void add_forward(std::vector<Phase>& phases, const AttentionTiles<E>& tiles) const;
  void add_weights(std::vector<Phase>& phases, const AttentionTiles<E>& tiles,
                   const WeightsView& weights) const;
  size_t forward_scratch() const;  // bytes of a worker
  size_t weights_scratch(const WeightsView& weights) const;

  // delta += what the gradient of the weights, where there is one, adds to it
  void add_weights_backward(std::vector<Phase>& phases, const GradientTiles<E>& tiles) const;
  // delta must be complete.
  void add_backward(std::vector<Phase>& phases, const GradientTiles<E>& tiles) const;
  // The gradient of the sinks, (H): set, or added to.
  void add_sink_gradient(std::vector<Phase>& phases, const GradientTiles<E>& tiles,
                         const View& d_sinks, bool adds) const;
  // The gradient of an additive mask, summed over the axes of size 1: (1|N, 1|H, 1|L, 1|S).
  void add_mask_gradient(std::vector<Phase>& phases, const GradientTiles<E>& tiles,
                         const View& d_mask) const;
  void layout_backward(Arena& arena);  // memory that depends on the number of workers
  // Bytes of a worker, for all three.
  size_t backward_scratch(const CallerArrays& caller = {}) const;

 private:
  // A head of a sequence, and a part of it: a tile of queries or a group of keys.
  struct Item {
    int32_t sequence, head, part;
  };
  struct ForwardScratch;
  struct WeightsScratch;
  struct QueryBlock;     // what the tasks of backward share about one block of queries
  struct GroupScratch;   // and a group of keys
  struct FinishScratch;  // and with what a gradient is finished

  TileAt place(const Item& item, int64_t query_tile) const {
    return {plan_.sequences[size_t(item.sequence)], item.sequence, item.head, query_tile};
  }
  std::vector<Item> heads_of_sequences() const;  // one item per head of keys: the first of its own
  // The i-th head of queries that a head of keys serves.
  static Item served(const Item& item, int64_t i) {
    return {item.sequence, int32_t(item.head + i), item.part};
  }
  std::vector<Item> query_tiles() const;  // one item per tile of a head's queries
  template <class Cost>
  void longest_first(std::vector<Item>& items, Cost cost) const;
  std::vector<int64_t> begins(int64_t heads, bool per_tile) const;  // of a phase over items

  // A head's sink in log2 units; false: there are none.
  bool sink(int64_t head, Stat<E>* score) const;
  void load_rules(Block<E>& block, const TileAt& at) const;
  // The rows of a tile in an array of the caller's.
  TokenRows rows_of(const View& array, Tokens tokens, const TileAt& at, void** rows) const;
  void write_rows(const View& array, Tokens tokens, const TileAt& at, const E* tile) const;
  // A tile of queries, in `to` unless it lies as one.
  const E* query_tile(const View& in_place, const E* tiles, const TileAt& at, int64_t features,
                      E* to) const;
  const E* query_tile(const AttentionTiles<E>& tiles, const TileAt& at, E* to) const {
    return query_tile(tiles.in_place.q, tiles.q, at, plan_.heads.dim, to);
  }
  void load_queries(Block<E>& block, const TileAt& at, const E* tile, E* to) const;
  void load_keys(Block<E>& block, const AttentionTiles<E>& tiles, const TileAt& at,
                 const TileMask<E>& mask) const;
  void prefetch_keys(PrefetchList& list, const AttentionTiles<E>& tiles, const TileAt& at) const;
  // One of so many parts of a tile of queries: of `tiles`, or of the caller's array in their place.
  struct Share {
    int64_t part, of;
  };
  void prefetch_queries(PrefetchList& list, const View& in_place, const E* tiles, const TileAt& at,
                        int64_t features, Share share = {0, 1}) const;

  void forward(const Item& item, const Item* next, const AttentionTiles<E>& tiles,
               Arena arena) const;
  void weights(const TileAt& at, const AttentionTiles<E>& tiles, const WeightsView& weights,
               Arena arena) const;
  void write_weights(const WeightsView& weights, const TileAt& at, const Acc<E>* tile) const;
  void load_weights(const WeightsView& weights, const TileAt& at, Acc<E> factor,
                    Acc<E>* tile) const;

  void weights_backward(const TileAt& at, const GradientTiles<E>& tiles, Arena arena) const;
  void backward(const Item& item, const Item* next, const GradientTiles<E>& tiles,
                Arena arena) const;
  void backward_queries(const TileAt& at, QueryBlock& own, const GroupScratch& sums,
                        const Item* next, const GradientTiles<E>& tiles) const;
  // What a task has at hand, and the task after it.
  struct After {
    const GroupScratch& sums;
    const Item* next;
  };
  void prefetch_backward(PrefetchList& list, const TileAt& at, KeyRange range, const After& after,
                         const GradientTiles<E>& tiles) const;
  void read_keys(const Item& item, const GroupScratch& sums, const GradientTiles<E>& tiles) const;
  KeyRange groups_seen(const TileAt& at) const;
  void key_gradient(const TileAt& at, Acc<E>* sums, const FinishScratch& scratch,
                    const GradientTiles<E>& tiles) const;
  void value_gradient(const TileAt& at, const Acc<E>* sums, const FinishScratch& scratch,
                      const GradientTiles<E>& tiles) const;
  void add_group(const TileAt& at, int64_t group, Acc<E>* sums, const FinishScratch& scratch,
                 const GradientTiles<E>& tiles) const;
  void reduce(const Item& item, const GradientTiles<E>& tiles, Arena arena) const;
  Acc<E> sink_gradient(int64_t head, const GradientTiles<E>& tiles) const;
  void mask_gradient(int64_t task, const GradientTiles<E>& tiles, const View& d_mask,
                     Arena arena) const;

  // Dropout's factor is in d_out's rows, or goes to the sums of products with them.
  Acc<E> factor_of_rows() const { return kRounds<E> ? Acc<E>(1) : Acc<E>(masks_.keep_scale()); }
  Acc<E> factor_of_values() const { return kRounds<E> ? Acc<E>(masks_.keep_scale()) : Acc<E>(1); }

  // Keys are taken in groups whose length follows from the number of keys alone. Each group sums
  // its own gradient of q; the groups are added in order, whoever computed them.
  static int64_t group_tiles(const Sequence& s);
  static int64_t groups_of(const Sequence& s);
  int64_t longest_group() const;  // tiles
  int64_t most_queries() const;
  // Elements of a tile of keys or values.
  int64_t key_size() const { return plan_.layout.size(plan_.heads.dim, kTile); }
  int64_t value_size() const { return plan_.layout.size(plan_.heads.value_dim, kTile); }
  Acc<E>* partial_tile(const TileAt& at, int64_t group) const;

  const Plan& plan_;
  const Kernels<E>& kernels_;
  const Masks<E>& masks_;
  const Rotation<E>& rotation_;
  const ScoreRules& rules_;
  const Acc<E> scale_, log2_scale_;
  const WorkerMemory& memory_;
  const int64_t head_pitch_, value_pitch_;
  bool by_sequence_ = false;
  bool split_ = false;  // groups of keys go to different tasks
  Acc<E>* partial_ = nullptr;
  std::vector<int64_t> partial_begin_;
};

}  // namespace multihead
