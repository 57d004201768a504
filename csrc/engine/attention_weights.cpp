// Attention weights, which no pass of attention itself keeps: scores once more.
#include <algorithm>

#include "interruption.h"
#include "query_block.h"

namespace multihead {

void* WeightsView::row(const Plan& plan, const TileAt& at, int64_t query) const {
  const int64_t head = heads == 1 ? 0 : at.head;
  if (view.rank == 4) return view.address(view.at(at.batch, head, query));
  const Sequence& s = at.sequence;
  const int64_t columns = s.source_keys + plan.extra_keys();
  return view.address(s.pairs * heads + (head * s.queries + query) * columns);
}

// Rows of a tile's queries, from a column on; null after the last one.
static void weight_rows(const WeightsView& weights, const Plan& plan, const TileAt& at,
                        int64_t column, void** rows) {
  const int64_t n = at.queries(), skip = column * weights.stride() * item_bytes(weights.view.dtype);
  for (int64_t i = 0; i < kTile; ++i)
    rows[i] = i < n ? static_cast<char*>(weights.row(plan, at, at.query_tile * kTile + i)) + skip
                    : nullptr;
}

template <class E>
struct Attention<E>::WeightsScratch {
  E *q, *p;
  const E** queries;  // of each head
  Acc<E>*s, *sum;
  DropoutRows* rows;
  TileScratch<E>* mask;

  WeightsScratch(Arena& arena, const Plan& plan, int64_t heads)
      : q(arena.take<E>(heads * plan.layout.size(plan.heads.dim, kTile))),
        queries(arena.take<const E*>(heads)),
        s(take_scores<E>(arena, p)),
        sum(arena.take<Acc<E>>(kTile * kTile)),
        rows(arena.take<DropoutRows>(heads)),
        mask(arena.take<TileScratch<E>>(1)) {}
};

// Heads that one task goes through: an average is summed head by head in its tile.
static int64_t heads_at_once(const WeightsView& weights, const Plan& plan) {
  return weights.heads == 1 ? plan.heads.count : 1;
}

template <class E>
size_t Attention<E>::weights_scratch(const WeightsView& weights) const {
  return weights.heads ? bytes_of<WeightsScratch>(plan_, heads_at_once(weights, plan_)) : 0;
}

template <class E>
void Attention<E>::add_weights(std::vector<Phase>& phases, const AttentionTiles<E>& tiles,
                               const WeightsView& view) const {
  if (!view.heads) return;
  const int64_t heads = heads_at_once(view, plan_);
  std::vector<Item> items = query_tiles();
  std::erase_if(items, [&](const Item& i) { return i.head % heads != 0; });
  const int64_t tasks = int64_t(items.size());
  std::vector<int64_t> begin = begins(plan_.heads.count / larger(heads, 1), true);
  auto run = [this, tiles, view, items = std::move(items)](int64_t task, int worker) {
    const Item& item = items[size_t(task)];
    weights(place(item, item.part), tiles, view, memory_.of(worker));
  };
  phases.push_back({tasks, std::move(run), std::move(begin)});
}

template <class E>
void Attention<E>::weights(const TileAt& at, const AttentionTiles<E>& tiles,
                           const WeightsView& view, Arena arena) const {
  const int64_t heads = heads_at_once(view, plan_), stride = view.stride();
  const WeightsScratch scratch(arena, plan_, heads);
  const int64_t columns = at.sequence.source_keys + plan_.extra_keys();
  void* rows[kTile];
  weight_rows(view, plan_, at, 0, rows);
  for (void* row : rows)
    if (row) clear_elements(row, stride, columns, view.view.dtype);
  const auto of_head = [&](int64_t h) {
    return TileAt{at.sequence, at.batch, at.head + h, at.query_tile};
  };
  Block<E> block;
  block.s = scratch.s;
  block.p = scratch.p;
  const int64_t q_size = plan_.layout.size(plan_.heads.dim, kTile);
  for (int64_t h = 0; h < heads; ++h) {
    E* const q = scratch.q + h * q_size;
    load_queries(block, of_head(h), query_tile(tiles, of_head(h), q), q);
    scratch.queries[h] = block.q;
    masks_.dropout_rows(of_head(h), scratch.rows[h]);
  }
  const Acc<E> factor = Acc<E>(masks_.keep_scale() / double(heads));
  for (int64_t t = 0; t < at.sequence.key_tiles() && !ending(); ++t) {
    bool any = false;
    for (int64_t h = 0; h < heads; ++h) {
      TileMask<E> mask;
      const TileAt here = of_head(h).with_keys(t);
      if (!masks_.tile(here, scratch.rows[h], *scratch.mask, mask)) continue;
      block.q = scratch.queries[h];
      load_rules(block, here);
      load_keys(block, tiles, here, mask);
      kernels_.weights_block(block, tiles.row_max + plan_.query_row(here),
                             tiles.row_inv + plan_.query_row(here), factor, scratch.sum, any);
      any = true;
    }
    if (any) write_weights(view, at.with_keys(t), scratch.sum);
  }
}

// A tile of weights to the columns of its keys: those that padding left, and those after them.
template <class E>
void Attention<E>::write_weights(const WeightsView& view, const TileAt& at,
                                 const Acc<E>* tile) const {
  const Sequence& s = at.sequence;
  const int64_t lanes = at.query_lanes(), first = at.first_key(), stride = view.stride();
  void* rows[kTile];
  int64_t done = 0;
  if (!s.positions) {
    weight_rows(view, plan_, at, first, rows);
    done = at.given_keys();
    kernels_.unpack_sums({rows, stride, view.view.dtype}, tile, lanes, done, false);
  }
  weight_rows(view, plan_, at, 0, rows);
  Stored<Acc<E>>::as(view.view.dtype, [&]<class S>() {
    for (int64_t j = done; j < at.keys(); ++j)
      for (int64_t i = 0; i < at.queries(); ++i)
        narrow(static_cast<S*>(rows[i])[s.column(first + j) * stride], tile[j * lanes + i]);
  });
}

// And back, scaled.
template <class E>
void Attention<E>::load_weights(const WeightsView& view, const TileAt& at, Acc<E> factor,
                                Acc<E>* tile) const {
  const Sequence& s = at.sequence;
  const int64_t lanes = at.query_lanes(), first = at.first_key(), stride = view.stride();
  void* rows[kTile];
  int64_t done = 0;
  if (!s.positions) {
    weight_rows(view, plan_, at, first, rows);
    done = at.given_keys();
    kernels_.pack_scores(tile, lanes, {rows, stride, view.view.dtype}, done);
  }
  weight_rows(view, plan_, at, 0, rows);
  Stored<Acc<E>>::as(view.view.dtype, [&]<class S>() {
    for (int64_t j = done; j < at.keys(); ++j)
      for (int64_t i = 0; i < lanes; ++i)
        tile[j * lanes + i] =
            rows[i] ? widen(static_cast<const S*>(rows[i])[s.column(first + j) * stride])
                    : Acc<E>(0);
  });
  kernels_.scale_sums(tile, tile, at.keys() * lanes, factor);
}

// Backward

template <class E>
void Attention<E>::add_weights_backward(std::vector<Phase>& phases,
                                        const GradientTiles<E>& tiles) const {
  if (!tiles.d_weights.heads) return;
  std::vector<Item> items = query_tiles();
  const int64_t tasks = int64_t(items.size());
  auto run = [this, tiles, items = std::move(items)](int64_t task, int worker) {
    const Item& item = items[size_t(task)];
    weights_backward(place(item, item.part), tiles, memory_.of(worker));
  };
  phases.push_back({tasks, std::move(run), begins(plan_.heads.count, true)});
}

// delta += rowsum(weights * d_weights)
template <class E>
void Attention<E>::weights_backward(const TileAt& at, const GradientTiles<E>& tiles,
                                    Arena arena) const {
  QueryBlock own(arena, *this);
  masks_.dropout_rows(at, *own.rows);
  load_queries(own.block, at, query_tile(tiles.forward, at, own.q), own.q);
  const int64_t lanes = own.block.lanes, row = plan_.query_row(at);
  const Acc<E> share = Acc<E>(tiles.d_weights.share(plan_));
  for (int64_t t = 0; t < at.sequence.key_tiles() && !ending(); ++t) {
    const TileAt here = at.with_keys(t);
    TileMask<E> mask;
    if (!masks_.tile(here, *own.rows, *own.mask, mask)) continue;
    load_keys(own.block, tiles.forward, here, mask);
    kernels_.weights_block(own.block, tiles.forward.row_max + row, tiles.forward.row_inv + row,
                           Acc<E>(masks_.keep_scale()), own.s, false);
    load_weights(tiles.d_weights, here, share, own.d_weights);
    if (mask.visible)  // a hidden weight has no gradient, whatever came for it
      for (int64_t j = 0; j < own.block.keys; ++j)
        for (int64_t i = 0; i < lanes; ++i)
          if (!(mask.visible[j] >> i & 1)) own.d_weights[j * lanes + i] = Acc<E>(0);
    kernels_.add_score_dot(tiles.delta + row, own.s, own.d_weights, own.block.keys, lanes);
  }
}

template class Attention<BFloat16>;
template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
