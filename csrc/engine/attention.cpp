#include "attention.h"

#include <algorithm>

namespace multihead {

constexpr double kLog2E = 1.4426950408889634;

template <class T>
Attention<T>::Attention(const Plan& plan, const Kernels<T>& kernels, const Masks<T>& masks,
                        double scale, WorkerMemory& memory)
    : plan_(plan),
      kernels_(kernels),
      masks_(masks),
      scale_(T(scale)),
      memory_(memory),
      head_pitch_(round_up(plan.head_dim, kLane)),
      value_pitch_(round_up(plan.value_dim, kLane)) {}

// One item per head of a sequence, or per tile of its queries; the longest keys first, unless a
// worker takes a sequence at a time.
template <class T>
auto Attention<T>::items(bool per_tile) const -> std::vector<Item> {
  std::vector<Item> list;
  for (size_t b = 0; b < plan_.sequences.size(); ++b)
    for (int64_t h = 0; h < plan_.heads; ++h) {
      const int64_t parts = per_tile ? tiles_of(plan_.sequences[b].queries) : 1;
      for (int64_t t = 0; t < parts; ++t) list.push_back({int32_t(b), int32_t(h), int32_t(t)});
    }
  if (by_sequence_) return list;
  const auto cost = [&](const Item& i) {
    const Sequence& s = plan_.sequences[size_t(i.sequence)];
    return s.keys * (per_tile ? 1 : s.queries);
  };
  std::stable_sort(list.begin(), list.end(),
                   [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
  return list;
}

template <class T>
std::vector<int64_t> Attention<T>::begins(int64_t heads, bool per_tile) const {
  if (!by_sequence_) return {};
  return plan_.begins(
      [&](const Sequence& s) { return heads * (per_tile ? tiles_of(s.queries) : 1); });
}

template <class T>
void Attention<T>::fill(Block<T>& block, const AttentionTiles<T>& tiles, const Sequence& s,
                        int64_t head, int64_t query_tile) const {
  block.head_dim = plan_.head_dim;
  block.value_dim = plan_.value_dim;
  block.lanes = tile_lanes(s.queries, query_tile);
  kernels_.scale(const_cast<T*>(block.q),
                 tiles.q + plan_.query_tile(s, head, query_tile, plan_.head_dim),
                 plan_.head_dim * block.lanes, T(double(scale_) * kLog2E));
}

template <class T>
void Attention<T>::at_key_tile(Block<T>& block, const AttentionTiles<T>& tiles, const Sequence& s,
                               int64_t head, int64_t key_tile, const TileMask<T>& mask) const {
  block.k = tiles.k + plan_.key_tile_by_head(s, head, key_tile, plan_.head_dim);
  block.v = tiles.v + plan_.key_tile_by_head(s, head, key_tile, plan_.value_dim);
  block.key_lanes = tile_lanes(plan_.rows(s), key_tile);
  block.keys = tile_tokens(plan_.rows(s), key_tile);
  block.visible = mask.visible;
  block.bias = mask.bias;
  block.key_bias = mask.key_bias;
  block.keep = mask.keep;
}

// Forward

template <class T>
struct ForwardScratch {
  T *q, *s, *out;
  TileScratch<T>* mask;

  ForwardScratch(Arena& arena, const Plan& plan)
      : q(arena.take<T>(plan.head_dim * kTile)),
        s(arena.take<T>(kTile * kTile)),
        out(arena.take<T>(plan.value_dim * kTile)),
        mask(arena.take<TileScratch<T>>(1)) {}
};

template <class T>
void Attention<T>::add_forward(std::vector<Phase>& phases, const AttentionTiles<T>& tiles) {
  Arena count;
  ForwardScratch<T>(count, plan_);
  memory_.need(count.used());
  std::vector<Item> list = items(true);
  const int64_t tasks = int64_t(list.size());
  auto run = [this, tiles, list = std::move(list)](int64_t task, int w) {
    forward(list[size_t(task)], tiles, memory_.of(w));
  };
  phases.push_back({tasks, std::move(run), begins(plan_.heads, true)});
}

template <class T>
void Attention<T>::forward(const Item& item, const AttentionTiles<T>& tiles, Arena arena) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  const ForwardScratch<T> scratch(arena, plan_);
  T* const out = tiles.out + plan_.query_tile(s, item.head, item.part, plan_.value_dim);
  uint64_t seen = 0;
  DropoutRows rows;
  masks_.dropout_rows(item.sequence, item.head, item.part, rows);
  ForwardBlock<T> block;
  block.q = scratch.q;
  block.s = scratch.s;
  block.out = scratch.out;
  block.row_max = tiles.row_max + plan_.query_row(s, item.head, item.part);
  block.row_sum = tiles.row_inv + plan_.query_row(s, item.head, item.part);
  block.seen = &seen;
  block.first = true;
  fill(block, tiles, s, item.head, item.part);
  for (int64_t t = 0; t < tiles_of(plan_.rows(s)); ++t) {
    TileMask<T> mask;
    if (!masks_.tile(s, item.sequence, item.head, item.part, t, rows, *scratch.mask, mask))
      continue;
    at_key_tile(block, tiles, s, item.head, t, mask);
    Wanted<3> wanted;
    if (block.first) wanted.add(out, plan_.value_dim * block.lanes);
    want_keys(wanted, tiles, s, item.head, t + 1);
    block.ahead = wanted.ahead();
    kernels_.forward_block(block);
    block.first = false;
  }
  kernels_.forward_end(block, T(masks_.keep_scale()), out, block.lanes);
}

// Weights

template <class T>
T* WeightsView::row(const Plan& plan, int64_t batch, int64_t head, int64_t query) const {
  if (heads == 1) head = 0;
  if (view.rank == 4)
    return view.as<T>() + batch * view.stride[0] + head * view.stride[1] + query * view.stride[2];
  const Sequence& s = plan.sequences[size_t(batch)];
  return view.as<T>() + s.weights + (head * s.queries + query) * (s.source + plan.extra());
}

template <class T>
struct WeightsScratch {
  T *q, *s, *sum;
  DropoutRows* rows;
  TileScratch<T>* mask;

  WeightsScratch(Arena& arena, const Plan& plan, int64_t heads)
      : q(arena.take<T>(heads * plan.head_dim * kTile)),
        s(arena.take<T>(kTile * kTile)),
        sum(arena.take<T>(kTile * kTile)),
        rows(arena.take<DropoutRows>(heads)),
        mask(arena.take<TileScratch<T>>(1)) {}
};

template <class T>
void Attention<T>::add_weights(std::vector<Phase>& phases, const AttentionTiles<T>& tiles,
                               const WeightsView& view) {
  const int64_t heads = view.heads == 1 ? plan_.heads : 1;  // of one task
  Arena count;
  WeightsScratch<T>(count, plan_, heads);
  memory_.need(count.used());
  std::vector<Item> list = items(true);
  std::erase_if(list, [&](const Item& i) { return i.head % heads != 0; });
  const int64_t tasks = int64_t(list.size());
  std::vector<int64_t> begin = begins(plan_.heads / heads, true);
  auto run = [this, tiles, view, heads, list = std::move(list)](int64_t task, int w) {
    weights(list[size_t(task)], heads, tiles, view, memory_.of(w));
  };
  phases.push_back({tasks, std::move(run), std::move(begin)});
}

template <class T>
void Attention<T>::weights(const Item& item, int64_t heads, const AttentionTiles<T>& tiles,
                           const WeightsView& view, Arena arena) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  const WeightsScratch<T> scratch(arena, plan_, heads);
  const int64_t columns = s.source + plan_.extra(), stride = view.stride();
  T* rows[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t query = item.part * kTile + i;
    rows[i] = query < s.queries ? view.row<T>(plan_, item.sequence, item.head, query) : nullptr;
    if (rows[i])
      for (int64_t c = 0; c < columns; ++c) rows[i][c * stride] = T(0);
  }
  Block<T> block;
  block.s = scratch.s;
  for (int64_t h = 0; h < heads; ++h) {
    block.q = scratch.q + h * plan_.head_dim * kTile;
    fill(block, tiles, s, item.head + h, item.part);
    masks_.dropout_rows(item.sequence, item.head + h, item.part, scratch.rows[h]);
  }
  const T factor = T(masks_.keep_scale() / double(heads));
  for (int64_t t = 0; t < tiles_of(plan_.rows(s)); ++t) {
    bool any = false;
    for (int64_t h = 0; h < heads; ++h) {
      TileMask<T> mask;
      const int64_t head = item.head + h;
      if (!masks_.tile(s, item.sequence, head, item.part, t, scratch.rows[h], *scratch.mask, mask))
        continue;
      block.q = scratch.q + h * plan_.head_dim * kTile;
      at_key_tile(block, tiles, s, head, t, mask);
      kernels_.weights_block(block, tiles.row_max + plan_.query_row(s, head, item.part),
                             tiles.row_inv + plan_.query_row(s, head, item.part), factor,
                             scratch.sum, any);
      any = true;
    }
    if (!any) continue;
    const int64_t first = t * kTile, count = tile_tokens(plan_.rows(s), t);
    const int64_t keys = std::clamp<int64_t>(s.keys - first, 0, count);
    int64_t done = 0;
    if (!s.positions) {
      T* at[kTile];
      for (int64_t i = 0; i < kTile; ++i) at[i] = rows[i] ? rows[i] + first * stride : nullptr;
      kernels_.unpack(at, stride, scratch.sum, block.lanes, block.lanes, keys, false);
      done = keys;
    }
    for (int64_t j = done; j < count; ++j) {
      const int64_t key = first + j;
      const int64_t column = j >= keys ? s.source + key - s.keys : s.positions[key];
      for (int64_t i = 0; i < block.lanes; ++i)
        if (rows[i]) rows[i][column * stride] = scratch.sum[j * block.lanes + i];
    }
  }
}

template <class T>
void Attention<T>::load_weights(const WeightsView& view, const Sequence& s, int64_t batch,
                                int64_t head, int64_t query_tile, int64_t key_tile, T factor,
                                T* tile) const {
  const int64_t lanes = tile_lanes(s.queries, query_tile), stride = view.stride();
  const int64_t first = key_tile * kTile, count = tile_tokens(plan_.rows(s), key_tile);
  const int64_t keys = std::clamp<int64_t>(s.keys - first, 0, count);
  const T* rows[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t query = query_tile * kTile + i;
    rows[i] = query < s.queries ? view.row<const T>(plan_, batch, head, query) : nullptr;
  }
  int64_t done = 0;
  if (!s.positions) {
    const T* at[kTile];
    for (int64_t i = 0; i < kTile; ++i) at[i] = rows[i] ? rows[i] + first * stride : nullptr;
    kernels_.pack(tile, lanes, lanes, at, stride, keys);
    done = keys;
  }
  for (int64_t j = done; j < count; ++j) {
    const int64_t key = first + j;
    const int64_t column = j >= keys ? s.source + key - s.keys : s.positions[key];
    for (int64_t i = 0; i < lanes; ++i)
      tile[j * lanes + i] = rows[i] ? rows[i][column * stride] : T(0);
  }
  kernels_.scale(tile, tile, count * lanes, factor);
}

template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
