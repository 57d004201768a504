// What forward and backward share, and forward.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "interruption.h"

namespace multihead {

template <class E>
Attention<E>::Attention(const Prepared<E>& call, const ScoreRules& rules)
    : plan_(call.plan),
      kernels_(call.kernels),
      masks_(call.masks),
      rotation_(call.rotation),
      rules_(rules),
      scale_(Acc<E>(rules.scale)),
      log2_scale_(log2_scale<Acc<E>>(rules)),
      memory_(call.memory),
      head_pitch_(round_up(plan_.heads.dim, kLane)),
      value_pitch_(round_up(plan_.heads.value_dim, kLane)) {}

// The longest keys first, unless a worker takes a sequence at a time.
template <class E>
template <class Cost>
void Attention<E>::longest_first(std::vector<Item>& items, Cost cost) const {
  if (by_sequence_) return;
  const auto of = [&](const Item& i) { return cost(plan_.sequences[size_t(i.sequence)]); };
  const auto longer = [&](const Item& a, const Item& b) { return of(a) > of(b); };
  if (!std::is_sorted(items.begin(), items.end(), longer))
    std::stable_sort(items.begin(), items.end(), longer);
}

template <class E>
auto Attention<E>::heads_of_sequences() const -> std::vector<Item> {
  std::vector<Item> items;
  items.reserve(plan_.sequences.size() * size_t(plan_.heads.key_count));
  for (size_t b = 0; b < plan_.sequences.size(); ++b)
    for (int64_t h = 0; h < plan_.heads.count; h += plan_.heads.group())
      items.push_back({int32_t(b), int32_t(h), 0});
  longest_first(items, [](const Sequence& s) { return s.keys * s.queries; });
  return items;
}

template <class E>
auto Attention<E>::query_tiles() const -> std::vector<Item> {
  std::vector<Item> items;
  items.reserve(plan_.query_tiles.size() * size_t(plan_.heads.count));
  for (size_t b = 0; b < plan_.sequences.size(); ++b)
    for (int64_t h = 0; h < plan_.heads.count; ++h)
      for (int64_t t = 0; t < plan_.sequences[b].query_tiles(); ++t)
        items.push_back({int32_t(b), int32_t(h), int32_t(t)});
  longest_first(items, [](const Sequence& s) { return s.keys; });
  return items;
}

template <class E>
std::vector<int64_t> Attention<E>::begins(int64_t heads, bool per_tile) const {
  if (!by_sequence_) return {};
  return plan_.begins([&](const Sequence& s) { return heads * (per_tile ? s.query_tiles() : 1); });
}

template <class E>
bool Attention<E>::sink(int64_t head, Stat<E>* score) const {
  const View& sinks = rules_.sinks;
  if (sinks) *score = Stat<E>(sinks.get<Acc<E>>(sinks.at(head)) * kLog2E);
  return bool(sinks);
}

template <class E>
TokenRows Attention<E>::rows_of(const View& array, Tokens tokens, const TileAt& at,
                                void** rows) const {
  const bool queries = tokens == Tokens::Queries;
  const int64_t head = queries ? at.head : plan_.key_head(at);
  const TokenRows all = head_rows(array, at.sequence, tokens, at.batch, head);
  all.tile(queries ? at.query_tile : at.key_tile, at.sequence.tokens(tokens), rows);
  return all;
}

template <class E>
void Attention<E>::write_rows(const View& array, Tokens tokens, const TileAt& at,
                              const E* tile) const {
  if (!array) return;
  void* rows[kTile];
  const TokenRows to = rows_of(array, tokens, at, rows);
  const int64_t lanes = tokens == Tokens::Queries ? at.query_lanes() : at.key_lanes();
  kernels_.unpack(to.target(rows), tile, lanes, array.size[3], false);
}

// What the rules say of the scores of a head.
template <class E>
void Attention<E>::load_rules(Block<E>& block, const TileAt& at) const {
  block.softcap = Acc<E>(rules_.softcap * kLog2E);
  if (const View& slopes = rules_.alibi_slopes)
    block.slope = Acc<E>(slopes.get<Acc<E>>(slopes.at(at.batch, at.head)) * kLog2E);
}

template <class E>
const E* Attention<E>::query_tile(const View& in_place, const E* tiles, const TileAt& at,
                                  int64_t features, E* to) const {
  if (!in_place) return tiles + plan_.query_tile(at, features);
  void* rows[kTile];
  const TokenRows from = rows_of(in_place, Tokens::Queries, at, rows);
  kernels_.pack(to, at.query_lanes(), from.source(rows), features, TileOf::Tokens);
  return to;
}

template <class E>
static void turn_around(E* to, const E* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (kRounds<E>)
      to[i] = {uint16_t(from[i].bits ^ 0x8000)};
    else
      to[i] = -from[i];
  }
}

// Kernels want scores to grow with products: under a negative scale, queries are turned around.
template <class E>
void Attention<E>::load_queries(Block<E>& block, const TileAt& at, const E* tile, E* to) const {
  block.head_dim = plan_.heads.dim;
  block.value_dim = plan_.heads.value_dim;
  block.lanes = at.query_lanes();
  load_rules(block, at);
  block.q = tile;
  block.score_factor = std::abs(log2_scale_);
  if (log2_scale_ >= 0) return;
  turn_around(to, tile, plan_.layout.size(plan_.heads.dim, block.lanes));
  block.q = to;
}

template <class E>
void Attention<E>::load_keys(Block<E>& block, const AttentionTiles<E>& tiles, const TileAt& at,
                             const TileMask<E>& mask) const {
  block.k = tiles.keys(plan_, at);
  block.v = tiles.values(plan_, at);
  block.key_lanes = at.key_lanes();
  block.keys = at.keys();
  block.visible = mask.visible;
  block.bias = mask.bias;
  block.key_bias = mask.key_bias;
  block.distance = mask.distance;
  block.given_keys = at.given_keys();
  block.keep = mask.keep;
}

template <class E>
void Attention<E>::prefetch_keys(PrefetchList& list, const AttentionTiles<E>& tiles,
                                 const TileAt& at) const {
  if (at.key_tile >= at.sequence.key_tiles()) return;
  const auto add = [&](KeyTile<E> tile, int64_t dim) {
    list.add(tile.data, tile.row ? tile.row * at.keys() : plan_.layout.size(dim, at.key_lanes()));
  };
  add(tiles.keys(plan_, at), plan_.heads.dim);
  add(tiles.values(plan_, at), plan_.heads.value_dim);
}

template <class E>
void Attention<E>::prefetch_queries(PrefetchList& list, const View& in_place, const E* tiles,
                                    const TileAt& at, int64_t features, Share share) const {
  const auto range = [&](int64_t n) {
    const int64_t begin = n * share.part / share.of;
    return std::pair(begin, n * (share.part + 1) / share.of - begin);
  };
  if (!in_place) {
    const auto [begin, count] = range(plan_.layout.size(features, at.query_lanes()));
    return list.add(tiles + plan_.query_tile(at, features) + begin, count);
  }
  void* rows[kTile];
  const TokenRows all = rows_of(in_place, Tokens::Queries, at, rows);
  const auto [begin, count] = range(at.queries());
  list.add_rows(all, rows + begin, count, features);
}

// Forward

template <class E>
struct Attention<E>::ForwardScratch {
  E *q, *p;
  Acc<E>*s, *out, *part_out;
  Stat<E>*part_max, *part_sum;
  TileScratch<E>* mask;

  // The tile of queries has become useless when that of outputs is made.
  ForwardScratch(Arena& arena, const Plan& plan)
      : q(arena.take<E>(plan.layout.size(larger(plan.heads.dim, plan.heads.value_dim), kTile))),
        s(take_scores<E>(arena, p)),
        out(arena.take<Acc<E>>(plan.layout.rows(plan.heads.value_dim) * kTile)),
        part_out(arena.take<Acc<E>>(plan.layout.rows(plan.heads.value_dim) * kTile)),
        part_max(arena.take<Stat<E>>(kTile)),
        part_sum(arena.take<Stat<E>>(kTile)),
        mask(arena.take<TileScratch<E>>(1)) {}
};

template <class E>
size_t Attention<E>::forward_scratch() const {
  return bytes_of<ForwardScratch>(plan_);
}

template <class E>
void Attention<E>::add_forward(std::vector<Phase>& phases, const AttentionTiles<E>& tiles) const {
  std::vector<Item> items = query_tiles();
  const int64_t tasks = int64_t(items.size());
  auto run = [this, tiles, items = std::move(items)](int64_t task, int worker) {
    const size_t after = size_t(task + memory_.workers());  // probably this worker's next
    forward(items[size_t(task)], after < items.size() ? &items[after] : nullptr, tiles,
            memory_.of(worker));
  };
  phases.push_back({tasks, std::move(run), begins(plan_.heads.count, true)});
}

// Sums over keys are made of the sums of so many tiles, which are kept apart.
constexpr int64_t kSummedTiles = 16;

template <class E>
void Attention<E>::forward(const Item& item, const Item* next, const AttentionTiles<E>& tiles,
                           Arena arena) const {
  const ForwardScratch scratch(arena, plan_);
  const TileAt at = place(item, item.part);
  const View& caller = tiles.in_place.out;
  E* const out = caller ? scratch.q : tiles.out + plan_.query_tile(at, plan_.heads.value_dim);
  uint64_t seen = 0;
  DropoutRows rows;
  masks_.dropout_rows(at, rows);
  ForwardBlock<E> block;
  block.s = scratch.s;
  block.p = scratch.p;
  block.out = scratch.out;
  block.row_max = tiles.row_max + plan_.query_row(at);
  block.row_sum = tiles.row_inv + plan_.query_row(at);
  block.seen = &seen;
  load_queries(block, at, query_tile(tiles, at, scratch.q), scratch.q);
  Stat<E> sink_score;
  block.first = !sink(at.head, &sink_score);
  if (!block.first) {  // as if it had been the first key
    std::fill(block.row_max, block.row_max + block.lanes, sink_score);
    std::fill(block.row_sum, block.row_sum + block.lanes, Stat<E>(1));
    std::fill(block.out, block.out + plan_.layout.rows(block.value_dim) * block.lanes, Acc<E>(0));
  }
  ForwardBlock<E> all;  // what the tiles before those of `block` gave
  int64_t summed = -1;
  const KeyRange range = masks_.range(at);
  for (int64_t t = range.begin; t < range.end; ++t) {
    if (ending()) return;
    const TileAt here = at.with_keys(t);
    TileMask<E> mask;
    if (!masks_.tile(here, rows, *scratch.mask, mask)) continue;
    if (summed >= 0 && t / kSummedTiles != summed) {
      if (block.out == scratch.part_out)
        kernels_.forward_merge(all, block);
      else
        all = block;
      block.out = scratch.part_out;
      block.row_max = scratch.part_max;
      block.row_sum = scratch.part_sum;
      block.first = true;
    }
    summed = t / kSummedTiles;
    load_keys(block, tiles, here, mask);
    PrefetchList list;
    if (t + 1 < range.end) {
      prefetch_keys(list, tiles, at.with_keys(t + 1));
    } else {
      prefetch_queries(list, caller, tiles.out, at, block.value_dim);
      if (next)
        prefetch_queries(list, tiles.in_place.q, tiles.q, place(*next, next->part), block.head_dim);
    }
    block.prefetch = list.get();
    kernels_.forward_block(block);
    block.first = false;
  }
  if (block.out == scratch.part_out) {
    kernels_.forward_merge(all, block);
    block.out = all.out;
    block.row_max = all.row_max;
    block.row_sum = all.row_sum;
  }
  kernels_.forward_end(block, Acc<E>(masks_.keep_scale()), out);
  write_rows(caller, Tokens::Queries, at, out);
}

template class Attention<BFloat16>;
template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
