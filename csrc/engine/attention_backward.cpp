#include <algorithm>

#include "attention.h"

namespace multihead {

constexpr int64_t kGroupTiles = 8;  // at least this many tiles of keys form a group
constexpr int64_t kGroups = 8;      // at most this many groups of a sequence

// Keys are taken in groups whose length follows from the number of keys alone. Each group sums
// its own gradient of q; the groups are added in order, whoever computed them.
template <class T>
int64_t Attention<T>::group_tiles(const Sequence& s) const {
  return larger(kGroupTiles, divide_up(tiles_of(plan_.rows(s)), kGroups));
}
template <class T>
int64_t Attention<T>::groups_of(const Sequence& s) const {
  return larger(1, divide_up(tiles_of(plan_.rows(s)), group_tiles(s)));
}

// One block of queries, ready for any tile of keys.
template <class T>
struct Attention<T>::QueryBlock {
  BackwardBlock<T> block;
  T *q, *d_out, *q_rows, *d_out_rows, *s, *ds, *d_weights;
  DropoutRows* rows;
  TileScratch<T>* mask;
  bool checked = false;  // block.finite is known: it matters where a mask hides something

  QueryBlock(Arena& arena, const Attention& a)
      : q(arena.take<T>(a.plan_.head_dim * kTile)),
        d_out(arena.take<T>(a.plan_.value_dim * kTile)),
        q_rows(arena.take<T>(a.head_pitch_ * kTile)),
        d_out_rows(arena.take<T>(a.value_pitch_ * kTile)),
        s(arena.take<T>(kTile * kTile)),
        ds(arena.take<T>(kTile * kTile)),
        d_weights(arena.take<T>(kTile * kTile)),
        rows(arena.take<DropoutRows>(1)),
        mask(arena.take<TileScratch<T>>(1)) {
    block.q = q;
    block.s = s;
    block.ds = ds;
  }

  // Scales and transposes what the block needs of q and d_out.
  void begin(const Attention& a, const AttentionTiles<T>& tiles, const GradientTiles<T>& g,
             const Sequence& s, int64_t head, int64_t tile) {
    const int64_t D = a.plan_.head_dim, Dv = a.plan_.value_dim;
    const T keep = T(a.masks_.keep_scale());
    a.fill(block, tiles, s, head, tile);
    const T* query = tiles.q + a.plan_.query_tile(s, head, tile, D);
    const T* gradient = g.d_out + a.plan_.query_tile(s, head, tile, Dv);
    block.queries = tile_tokens(s.queries, tile);
    block.row_max = tiles.row_max + a.plan_.query_row(s, head, tile);
    block.row_inv = tiles.row_inv + a.plan_.query_row(s, head, tile);
    block.delta = g.delta + a.plan_.query_row(s, head, tile);
    a.kernels_.transpose(q_rows, a.head_pitch_, a.head_pitch_, query, block.lanes, D, block.lanes,
                         T(1));
    a.kernels_.transpose(d_out_rows, a.value_pitch_, a.value_pitch_, gradient, block.lanes, Dv,
                         block.lanes, keep);
    block.d_out = gradient;
    if (a.masks_.drops()) {
      a.kernels_.scale(d_out, gradient, Dv * block.lanes, keep);
      block.d_out = d_out;
    }
    block.q_rows = q_rows;
    block.d_out_rows = d_out_rows;
    block.head_pitch = a.head_pitch_;
    block.value_pitch = a.value_pitch_;
    checked = false;
  }

  void at_key_tile(const Attention& a, const AttentionTiles<T>& tiles, const WeightsView& weights,
                   const Sequence& s, int64_t batch, int64_t head, int64_t tile, int64_t key_tile,
                   const TileMask<T>& mask_of_tile) {
    a.at_key_tile(block, tiles, s, head, key_tile, mask_of_tile);
    if (block.visible && !checked) {
      block.finite = a.kernels_.finite(q, block.head_dim * block.lanes) &&
                     a.kernels_.finite(block.d_out, block.value_dim * block.lanes);
      checked = true;
    }
    block.d_weights = nullptr;
    if (weights.heads) {
      const double share = weights.heads == 1 ? 1.0 / double(a.plan_.heads) : 1.0;
      a.load_weights(weights, s, batch, head, tile, key_tile, T(a.masks_.keep_scale() * share),
                     d_weights);
      block.d_weights = d_weights;
    }
  }
};

template <class T>
T* Attention<T>::partial_tile(const Sequence& s, size_t sequence, int64_t head, int64_t group,
                              int64_t tile) const {
  const int64_t lanes = round_up(s.queries, kLane);
  return partial_ + partial_begin_[sequence] +
         ((head * groups_of(s) + group) * lanes + tile * kTile) * plan_.head_dim;
}

template <class T>
void Attention<T>::layout_backward(Arena& arena, int workers) {
  int64_t units = 0, most = 1, floats = 0;
  partial_begin_.clear();
  for (const Sequence& s : plan_.sequences) {
    const int64_t groups = groups_of(s);
    units += plan_.heads;
    most = larger(most, groups);
    partial_begin_.push_back(floats);
    floats += plan_.heads * groups * round_up(s.queries, kLane) * plan_.head_dim;
  }
  split_ = workers > 1 && most > 1 && units < 3 * workers;  // changes no bits
  partial_ = split_ ? arena.take<T>(floats) : nullptr;
}

template <class T>
void Attention<T>::add_backward(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                                const GradientTiles<T>& gradients, const WeightsView& d_weights,
                                int workers) {
  Arena count;
  QueryBlock(count, *this);
  int64_t longest = 0;
  for (const Sequence& s : plan_.sequences) longest = larger(longest, group_tiles(s));
  count.take<T>(longest * kTile * (head_pitch_ + value_pitch_));
  count.take<T>(plan_.head_dim * kTile);
  memory_.need(count.used());

  if (d_weights.heads) {
    std::vector<Item> list = items(true);
    const int64_t tasks = int64_t(list.size());
    auto run = [this, tiles, gradients, d_weights, list = std::move(list)](int64_t task, int w) {
      add_delta(list[size_t(task)], tiles, gradients, d_weights, memory_.of(w));
    };
    phases.push_back({tasks, std::move(run), begins(plan_.heads, true)});
  }
  std::vector<Item> heads = items(false), list;
  for (const Item& i : heads) {
    const Sequence& s = plan_.sequences[size_t(i.sequence)];
    const int64_t parts = split_ ? groups_of(s) : 1;
    for (int64_t g = 0; g < parts; ++g) list.push_back({i.sequence, i.head, int32_t(g)});
  }
  const int64_t tasks = int64_t(list.size()), folds = int64_t(heads.size());
  auto run = [this, tiles, gradients, d_weights, workers, list = std::move(list)](int64_t task,
                                                                                  int w) {
    const Item& i = list[size_t(task)];
    const size_t after = size_t(task) + size_t(workers);  // probably this worker's next
    const int64_t groups = split_ ? 1 : groups_of(plan_.sequences[size_t(i.sequence)]);
    backward(i, after < list.size() ? &list[after] : nullptr, i.part, groups, tiles, gradients,
             d_weights, memory_.of(w));
  };
  phases.push_back(
      {tasks, std::move(run), split_ ? std::vector<int64_t>{} : begins(plan_.heads, false)});
  if (!split_) return;
  auto add_up = [this, gradients, heads = std::move(heads)](int64_t task, int) {
    fold(heads[size_t(task)], gradients);
  };
  phases.push_back({folds, std::move(add_up)});
}

// delta += rowsum(weights * d_weights)
template <class T>
void Attention<T>::add_delta(const Item& item, const AttentionTiles<T>& tiles,
                             const GradientTiles<T>& gradients, const WeightsView& view,
                             Arena arena) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  QueryBlock at(arena, *this);
  masks_.dropout_rows(item.sequence, item.head, item.part, *at.rows);
  fill(at.block, tiles, s, item.head, item.part);
  const int64_t lanes = at.block.lanes;
  const T share = view.heads == 1 ? T(1.0 / double(plan_.heads)) : T(1);
  T* delta = gradients.delta + plan_.query_row(s, item.head, item.part);
  for (int64_t t = 0; t < tiles_of(plan_.rows(s)); ++t) {
    TileMask<T> mask;
    if (!masks_.tile(s, item.sequence, item.head, item.part, t, *at.rows, *at.mask, mask)) continue;
    this->at_key_tile(at.block, tiles, s, item.head, t, mask);
    kernels_.weights_block(at.block, tiles.row_max + plan_.query_row(s, item.head, item.part),
                           tiles.row_inv + plan_.query_row(s, item.head, item.part),
                           T(masks_.keep_scale()), at.s, false);
    load_weights(view, s, item.sequence, item.head, item.part, t, share, at.d_weights);
    if (mask.visible)  // a hidden weight has no gradient, whatever came for it
      for (int64_t j = 0; j < at.block.keys; ++j)
        for (int64_t i = 0; i < lanes; ++i)
          if (!(mask.visible[j] >> i & 1)) at.d_weights[j * lanes + i] = T(0);
    alignas(64) T sum[kTile];
    kernels_.delta(sum, at.s, at.d_weights, at.block.keys, lanes);
    kernels_.add_scaled(delta, sum, lanes, T(1));
  }
}

// What comes after one tile of queries and one of keys: the rest of the first tile of queries wants
// the next keys; each tile of queries the one after it, a part with each tile of keys, and the
// place of its own d_q; the last one the places of d_k and d_v, and what the next task begins with.
template <class T>
void Attention<T>::want(Wanted<8>& wanted, const Item& item, const Item* next_item,
                        const AttentionTiles<T>& tiles, const GradientTiles<T>& g, int64_t group,
                        int64_t tile, int64_t t) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  const int64_t D = plan_.head_dim, Dv = plan_.value_dim;
  const int64_t begin = group * group_tiles(s);
  const int64_t end = smaller(begin + group_tiles(s), tiles_of(plan_.rows(s)));
  const auto part = [&](const T* at, int64_t count) {
    const int64_t parts = end - begin, i = t - begin;
    wanted.add(at + count * i / parts, count * (i + 1) / parts - count * i / parts);
  };
  const auto queries = [&](const Sequence& of, int64_t head, int64_t query_tile) {
    const int64_t lanes = tile_lanes(of.queries, query_tile);
    part(tiles.q + plan_.query_tile(of, head, query_tile, D), D * lanes);
    part(g.d_out + plan_.query_tile(of, head, query_tile, Dv), Dv * lanes);
  };
  if (tile == 0 && t + 1 < end) want_keys(wanted, tiles, s, item.head, t + 1);
  if (!split_)
    part(g.d_q + plan_.query_tile(s, item.head, tile, D), D * tile_lanes(s.queries, tile));
  if (tile + 1 < tiles_of(s.queries)) {
    queries(s, item.head, tile + 1);
    return;
  }
  const int64_t lanes = tile_lanes(plan_.rows(s), t);
  wanted.add(g.d_k + plan_.key_tile(s, item.head, t, D), D * lanes);
  wanted.add(g.d_v + plan_.key_tile(s, item.head, t, Dv), Dv * lanes);
  if (group + 1 < groups_of(s)) {
    queries(s, item.head, 0);
    if (t + 1 == end) want_keys(wanted, tiles, s, item.head, t + 1);
  } else if (next_item) {
    const Sequence& next = plan_.sequences[size_t(next_item->sequence)];
    if (next.queries > 0) queries(next, next_item->head, 0);
    if (t + 1 == end) want_keys(wanted, tiles, next, next_item->head, 0);
  }
}

template <class T>
void Attention<T>::backward(const Item& item, const Item* next, int64_t first_group, int64_t groups,
                            const AttentionTiles<T>& tiles, const GradientTiles<T>& gradients,
                            const WeightsView& d_weights, Arena arena) const {
  const size_t sequence = size_t(item.sequence);
  const Sequence& s = plan_.sequences[sequence];
  const int64_t head = item.head, D = plan_.head_dim, Dv = plan_.value_dim;
  const int64_t size = group_tiles(s), key_tiles = tiles_of(plan_.rows(s));
  QueryBlock at(arena, *this);
  T* d_k = arena.take<T>(size * kTile * head_pitch_);
  T* d_v = arena.take<T>(size * kTile * value_pitch_);
  T* d_q = arena.take<T>(D * kTile);
  for (int64_t group = first_group; group < first_group + groups; ++group) {
    const int64_t begin = group * size, end = smaller(begin + size, key_tiles);
    std::fill(d_k, d_k + larger(end - begin, 0) * kTile * head_pitch_, T(0));
    std::fill(d_v, d_v + larger(end - begin, 0) * kTile * value_pitch_, T(0));
    for (int64_t tile = 0; tile < tiles_of(s.queries); ++tile) {
      bool any = false;
      T* sum = split_ ? partial_tile(s, sequence, head, group, tile) : d_q;
      const int64_t floats = D * tile_lanes(s.queries, tile);
      masks_.dropout_rows(item.sequence, head, tile, *at.rows);
      for (int64_t t = begin; t < end; ++t) {
        TileMask<T> mask;
        if (!masks_.tile(s, item.sequence, head, tile, t, *at.rows, *at.mask, mask)) continue;
        if (!any) {
          at.begin(*this, tiles, gradients, s, head, tile);
          std::fill(sum, sum + floats, T(0));
          at.block.d_q = sum;
          any = true;
        }
        at.at_key_tile(*this, tiles, d_weights, s, item.sequence, head, tile, t, mask);
        at.block.d_k = d_k + (t - begin) * kTile * head_pitch_;
        at.block.d_v = d_v + (t - begin) * kTile * value_pitch_;
        Wanted<8> wanted;
        want(wanted, item, next, tiles, gradients, group, tile, t);
        at.block.ahead = wanted.ahead();
        kernels_.backward_block(at.block);
      }
      if (!any && (split_ || group == 0)) std::fill(sum, sum + floats, T(0));
      if (split_ || (!any && group > 0)) continue;
      T* total = gradients.d_q + plan_.query_tile(s, head, tile, D);
      group == 0 ? kernels_.scale(total, sum, floats, scale_)
                 : kernels_.add_scaled(total, sum, floats, scale_);
    }
    for (int64_t t = begin; t < end; ++t) {
      const int64_t lanes = tile_lanes(plan_.rows(s), t), n = tile_tokens(plan_.rows(s), t);
      kernels_.transpose(gradients.d_k + plan_.key_tile(s, head, t, D), lanes, lanes,
                         d_k + (t - begin) * kTile * head_pitch_, head_pitch_, n, D, scale_);
      kernels_.transpose(gradients.d_v + plan_.key_tile(s, head, t, Dv), lanes, lanes,
                         d_v + (t - begin) * kTile * value_pitch_, value_pitch_, n, Dv, T(1));
    }
  }
}

template <class T>
void Attention<T>::fold(const Item& item, const GradientTiles<T>& gradients) const {
  const size_t sequence = size_t(item.sequence);
  const Sequence& s = plan_.sequences[sequence];
  for (int64_t tile = 0; tile < tiles_of(s.queries); ++tile) {
    T* total = gradients.d_q + plan_.query_tile(s, item.head, tile, plan_.head_dim);
    const int64_t floats = plan_.head_dim * tile_lanes(s.queries, tile);
    for (int64_t group = 0; group < groups_of(s); ++group) {
      const T* part = partial_tile(s, sequence, item.head, group, tile);
      group == 0 ? kernels_.scale(total, part, floats, scale_)
                 : kernels_.add_scaled(total, part, floats, scale_);
    }
  }
}

// Mask gradient: the gradient of the scores, tile by tile, into the rows that a task owns.

template <class T>
void Attention<T>::add_mask_gradient(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                                     const GradientTiles<T>& gradients,
                                     const WeightsView& d_weights, const View& d_mask) {
  Arena count;
  QueryBlock(count, *this);
  memory_.need(count.used());
  const int64_t tiles_owned = d_mask.size[2] == 1 ? 1 : tiles_of(d_mask.size[2]);
  const int64_t tasks = d_mask.size[0] * d_mask.size[1] * tiles_owned;
  auto run = [this, tiles, gradients, d_weights, d_mask](int64_t task, int w) {
    mask_gradient(task, tiles, gradients, d_weights, d_mask, memory_.of(w));
  };
  phases.push_back({tasks, std::move(run)});
}

template <class T>
void Attention<T>::mask_gradient(int64_t task, const AttentionTiles<T>& tiles,
                                 const GradientTiles<T>& gradients, const WeightsView& d_weights,
                                 const View& d_mask, Arena arena) const {
  const int64_t owned = d_mask.size[2] == 1 ? 1 : tiles_of(d_mask.size[2]);
  const int64_t batch = int64_t(plan_.sequences.size());
  const int64_t own_tile = task % owned, own_head = task / owned % d_mask.size[1],
                own_batch = task / owned / d_mask.size[1];
  const auto at_element = [&](int64_t query, int64_t key) {
    return d_mask.as<T>() + own_batch * d_mask.stride[0] + own_head * d_mask.stride[1] +
           (d_mask.size[2] == 1 ? 0 : query * d_mask.stride[2]) +
           (d_mask.size[3] == 1 ? 0 : key * d_mask.stride[3]);
  };
  const bool one_query = d_mask.size[2] == 1, one_key = d_mask.size[3] == 1;
  const int64_t first = one_query ? 0 : own_tile * kTile;
  const int64_t last = one_query ? 1 : smaller(first + kTile, d_mask.size[2]);
  for (int64_t q = first; q < last; ++q)
    for (int64_t k = 0; k < d_mask.size[3]; ++k) *at_element(q, k) = T(0);

  QueryBlock at(arena, *this);
  const int64_t all_batch = d_mask.size[0] == 1 ? batch : 1;
  const int64_t all_heads = d_mask.size[1] == 1 ? plan_.heads : 1;
  for (int64_t b = own_batch; b < own_batch + all_batch; ++b) {
    const Sequence& s = plan_.sequences[size_t(b)];
    const int64_t query_tiles = tiles_of(s.queries);
    for (int64_t h = own_head; h < own_head + all_heads; ++h)
      for (int64_t tile = one_query ? 0 : own_tile;
           tile < (one_query ? query_tiles : smaller(own_tile + 1, query_tiles)); ++tile) {
        masks_.dropout_rows(b, h, tile, *at.rows);
        at.begin(*this, tiles, gradients, s, h, tile);
        for (int64_t t = 0; t < tiles_of(s.keys); ++t) {
          TileMask<T> mask;
          if (!masks_.tile(s, b, h, tile, t, *at.rows, *at.mask, mask)) continue;
          at.at_key_tile(*this, tiles, d_weights, s, b, h, tile, t, mask);
          kernels_.score_gradients(at.block);
          const int64_t keys = tile_tokens(s.keys, t);
          for (int64_t j = 0; j < keys; ++j) {
            const T* row = at.ds + j * at.block.lanes;
            const int64_t key = s.positions ? s.positions[t * kTile + j] : t * kTile + j;
            if (one_query || one_key) {
              double sum = 0;
              for (int64_t i = 0; i < at.block.queries; ++i) {
                sum += double(row[i]);
                if (!one_query) *at_element(tile * kTile + i, 0) += row[i];
              }
              if (one_query) *at_element(0, key) += T(sum);
            } else {
              for (int64_t i = 0; i < at.block.queries; ++i)
                *at_element(tile * kTile + i, key) += row[i];
            }
          }
        }
      }
  }
}

template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
