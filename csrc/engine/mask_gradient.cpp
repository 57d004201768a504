// The gradient of an additive mask: that of the scores, tile by tile, into the rows that a task
// owns.
#include "interruption.h"
#include "query_block.h"

namespace multihead {
namespace {

// The rows of a mask's gradient, (1|N, 1|H, 1|L, 1|S), that one task sets: of one sequence, head
// and tile of queries, or of all where the axis is shared.
template <class E>
struct OwnedRows {
  const View& d_mask;
  bool every_query, every_key;  // whether the sums go over them
  int64_t batch, head, tile;    // the task's; 0 where shared

  OwnedRows(const View& v, int64_t task) : d_mask(v) {
    every_query = v.size[2] == 1;
    every_key = v.size[3] == 1;
    const int64_t tiles = tiles_owned(v);
    tile = task % tiles;
    head = task / tiles % v.size[1];
    batch = task / tiles / v.size[1];
  }
  static int64_t tiles_owned(const View& v) { return v.size[2] == 1 ? 1 : tiles_of(v.size[2]); }
  static int64_t tasks(const View& v) { return v.size[0] * v.size[1] * tiles_owned(v); }

  Acc<E>& element(int64_t query, int64_t key) const {
    return d_mask
        .as<Acc<E>>()[d_mask.at(batch, head, every_query ? 0 : query, every_key ? 0 : key)];
  }
  void clear() const {
    const int64_t first = every_query ? 0 : tile * kTile;
    const int64_t last = every_query ? 1 : smaller(first + kTile, d_mask.size[2]);
    for (int64_t q = first; q < last; ++q)
      for (int64_t k = 0; k < d_mask.size[3]; ++k) element(q, k) = 0;
  }
  // The gradients of one key's scores with a tile of queries.
  void add(int64_t query_tile, int64_t key, const Acc<E>* ds, int64_t queries) const {
    if (every_query) {
      double sum = 0;
      for (int64_t i = 0; i < queries; ++i) sum += double(ds[i]);
      element(0, key) += Acc<E>(sum);
    } else {
      for (int64_t i = 0; i < queries; ++i) element(query_tile * kTile + i, key) += ds[i];
    }
  }
};

}  // namespace

template <class E>
void Attention<E>::add_mask_gradient(std::vector<Phase>& phases, const GradientTiles<E>& tiles,
                                     const View& d_mask) const {
  if (!d_mask) return;
  auto run = [this, tiles, d_mask](int64_t task, int worker) {
    mask_gradient(task, tiles, d_mask, memory_.of(worker));
  };
  phases.push_back({OwnedRows<E>::tasks(d_mask), std::move(run)});
}

template <class E>
void Attention<E>::mask_gradient(int64_t task, const GradientTiles<E>& tiles, const View& d_mask,
                                 Arena arena) const {
  const OwnedRows<E> rows(d_mask, task);
  rows.clear();
  QueryBlock own(arena, *this);
  const int64_t batches = d_mask.size[0] == 1 ? int64_t(plan_.sequences.size()) : 1;
  const int64_t heads = d_mask.size[1] == 1 ? plan_.heads.count : 1;
  for (int64_t b = rows.batch; b < rows.batch + batches; ++b) {
    const Sequence& s = plan_.sequences[size_t(b)];
    const int64_t first = rows.every_query ? 0 : rows.tile;
    const int64_t last = rows.every_query ? s.query_tiles() : smaller(first + 1, s.query_tiles());
    for (int64_t h = rows.head; h < rows.head + heads; ++h)
      for (int64_t tile = first; tile < last; ++tile) {
        const TileAt at{s, b, h, tile};
        masks_.dropout_rows(at, *own.rows);
        own.load(*this, tiles, at);
        for (int64_t t = 0; t < tiles_of(s.keys) && !ending(); ++t) {
          const TileAt here = at.with_keys(t);
          TileMask<E> mask;
          if (!masks_.tile(here, *own.rows, *own.mask, mask)) continue;
          own.meet(*this, tiles, here, mask);
          own.block.v_tokens = own.block.v;
          if constexpr (kRounds<E>)
            own.block.v_tokens = {kernels_.tokens_of_values(
                own.v_tokens, own.block.v.data, own.block.key_lanes, plan_.heads.value_dim)};
          kernels_.score_gradients(own.block);
          for (int64_t j = 0; j < here.given_keys(); ++j)
            rows.add(tile, s.position(here.first_key() + j), own.d_p + j * own.block.lanes,
                     own.block.queries);
        }
      }
  }
}

template class Attention<BFloat16>;
template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
