// Attention backward: scores made anew, five products a tile.
#include <algorithm>

#include "interruption.h"
#include "query_block.h"

namespace multihead {

constexpr int64_t kGroupTiles = 8;  // at least this many tiles of keys form a group
constexpr int64_t kGroups = 8;      // at most this many groups of a sequence

template <class E>
int64_t Attention<E>::group_tiles(const Sequence& s) {
  return larger(kGroupTiles, divide_up(s.key_tiles(), kGroups));
}
template <class E>
int64_t Attention<E>::groups_of(const Sequence& s) {
  return larger(1, divide_up(s.key_tiles(), group_tiles(s)));
}

template <class E>
Acc<E>* Attention<E>::partial_tile(const TileAt& at, int64_t group) const {
  const int64_t lanes = round_up(at.sequence.queries, kLane);
  return partial_ + partial_begin_[size_t(at.batch)] +
         ((at.head * groups_of(at.sequence) + group) * lanes + at.query_tile * kTile) *
             plan_.heads.dim;
}

// Whether the sums of a gradient need memory of their own until they are complete: tiles cannot
// hold them, or there are no tiles.
template <class E>
static bool sums_apart(const Kernels<E>& kernels, const CallerArrays& caller) {
  return !kernels.sums_are_tiles || caller.gradients;
}

// What the gradient of a tile is finished with.
template <class E>
struct Attention<E>::FinishScratch {
  Acc<E>*sums, *angles;  // of a tile, see sums_apart; of its positions
  E* tile;               // on its way to the caller's rows

  FinishScratch(Arena& arena, const Attention& a, const CallerArrays& caller)
      : sums(sums_apart(a.kernels_, caller) ? arena.take<Acc<E>>(a.plan_.heads.dim * kTile)
                                            : nullptr),
        angles(arena.take<Acc<E>>(a.rotation_.scratch())),
        tile(caller.gradients ? arena.take<E>(larger(a.key_size(), a.value_size())) : nullptr) {}

  // The same for sums that lie elsewhere.
  FinishScratch with(Acc<E>* others) const {
    FinishScratch copy = *this;
    copy.sums = others;
    return copy;
  }
};

// Sums of one group of keys, and of the tile of queries at hand.
template <class E>
struct Attention<E>::GroupScratch {
  Acc<E>*d_k, *d_v, *d_q;
  Acc<E>* d_q_sums;         // of the groups so far, see sums_apart: [head][queries][D]
  E *k_columns, *v_tokens;  // of the group's keys, where other products than forward's read them
  FinishScratch finish;
  int64_t group = 0;
  KeyRange tiles{0, 0};

  // For groups of at most so many tiles, several of them with so many queries.
  struct Most {
    int64_t tiles, queries;
  };
  GroupScratch(Arena& arena, const Attention& a, Most most, const CallerArrays& caller)
      : d_k(arena.take<Acc<E>>(most.tiles * kTile * a.head_pitch_)),
        d_v(arena.take<Acc<E>>(most.tiles * kTile * a.value_pitch_)),
        d_q(arena.take<Acc<E>>(a.plan_.heads.dim * kTile)),
        d_q_sums(sums_apart(a.kernels_, caller)
                     ? arena.take<Acc<E>>(a.plan_.heads.group() * a.plan_.heads.dim *
                                          round_up(most.queries, kTile))
                     : nullptr),
        k_columns(kRounds<E> ? arena.take<E>(most.tiles * a.key_size()) : nullptr),
        v_tokens(kRounds<E> ? arena.take<E>(most.tiles * a.value_size()) : nullptr),
        finish(arena, a, caller) {}

  int64_t keys_before(int64_t tile) const { return (tile - tiles.begin) * kTile; }
};

template <class E>
int64_t Attention<E>::longest_group() const {
  int64_t longest = 0;
  for (const Sequence& s : plan_.sequences) longest = larger(longest, group_tiles(s));
  return longest;
}

template <class E>
int64_t Attention<E>::most_queries() const {
  int64_t most = 0;
  for (const Sequence& s : plan_.sequences) most = larger(most, s.queries);
  return most;
}

template <class E>
size_t Attention<E>::backward_scratch(const CallerArrays& caller) const {
  Arena none;
  QueryBlock(none, *this);
  GroupScratch(none, *this, {longest_group(), most_queries()}, caller);
  return none.used();
}

template <class E>
void Attention<E>::layout_backward(Arena& arena) {
  int64_t units = 0, most = 1, elements = 0;
  partial_begin_.clear();
  for (const Sequence& s : plan_.sequences) {
    const int64_t groups = groups_of(s);
    units += plan_.heads.key_count;
    most = larger(most, groups);
    partial_begin_.push_back(elements);
    elements += plan_.heads.count * groups * round_up(s.queries, kLane) * plan_.heads.dim;
  }
  const int workers = memory_.workers();
  split_ = workers > 1 && most > 1 && units < 3 * workers;  // changes no bits
  partial_ = split_ ? arena.take<Acc<E>>(elements) : nullptr;
}

// A task owns a head of keys, or one group of its keys where these are split.
template <class E>
void Attention<E>::add_backward(std::vector<Phase>& phases, const GradientTiles<E>& tiles) const {
  std::vector<Item> heads = heads_of_sequences(), split;
  for (const Item& i : heads) {
    if (!split_) break;
    for (int64_t g = 0; g < groups_of(plan_.sequences[size_t(i.sequence)]); ++g)
      split.push_back({i.sequence, i.head, int32_t(g)});
  }
  std::vector<Item> items = split_ ? std::move(split) : heads;
  const int64_t tasks = int64_t(items.size());
  auto run = [this, tiles, items = std::move(items)](int64_t task, int worker) {
    const size_t after = size_t(task + memory_.workers());  // probably this worker's next
    backward(items[size_t(task)], after < items.size() ? &items[after] : nullptr, tiles,
             memory_.of(worker));
  };
  phases.push_back({tasks, std::move(run),
                    split_ ? std::vector<int64_t>{} : begins(plan_.heads.key_count, false)});
  if (!split_) return;
  const int64_t reductions = int64_t(heads.size());
  auto add_up = [this, tiles, heads = std::move(heads)](int64_t task, int worker) {
    reduce(heads[size_t(task)], tiles, memory_.of(worker));
  };
  phases.push_back({reductions, std::move(add_up)});
}

template <class E>
void Attention<E>::backward(const Item& item, const Item* next, const GradientTiles<E>& tiles,
                            Arena arena) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  const int64_t size = group_tiles(s);
  QueryBlock own(arena, *this);
  GroupScratch sums(arena, *this, {size, s.queries}, tiles.forward.in_place);
  const int64_t first = split_ ? item.part : 0, last = split_ ? item.part + 1 : groups_of(s);
  for (sums.group = first; sums.group < last; ++sums.group) {
    sums.tiles = {sums.group * size, smaller((sums.group + 1) * size, s.key_tiles())};
    const int64_t keys = larger(sums.keys_before(sums.tiles.end), 0);
    std::fill(sums.d_k, sums.d_k + keys * head_pitch_, Acc<E>(0));
    std::fill(sums.d_v, sums.d_v + keys * value_pitch_, Acc<E>(0));
    read_keys(item, sums, tiles);
    for (int64_t i = 0; i < plan_.heads.group(); ++i)
      for (int64_t tile = 0; tile < s.query_tiles(); ++tile)
        backward_queries(place(served(item, i), tile), own, sums, next, tiles);
    for (int64_t t = sums.tiles.begin; t < sums.tiles.end; ++t) {
      const TileAt at = place(item, 0).with_keys(t);
      const int64_t before = sums.keys_before(t);
      key_gradient(at, sums.d_k + before * head_pitch_, sums.finish, tiles);
      value_gradient(at, sums.d_v + before * value_pitch_, sums.finish, tiles);
    }
  }
}

// The gradient of a tile of keys from its rows of sums, turned back where keys were turned.
template <class E>
void Attention<E>::key_gradient(const TileAt& at, Acc<E>* sums, const FinishScratch& scratch,
                                const GradientTiles<E>& tiles) const {
  const int64_t D = plan_.heads.dim, lanes = at.key_lanes();
  const CallerArrays& caller = tiles.forward.in_place;
  E* const tile = caller.gradients ? scratch.tile : tiles.d_k + plan_.key_tile(at, D);
  if (!rotation_.on() || kernels_.sums_are_tiles)
    kernels_.rows_to_tile(tile, lanes, sums, head_pitch_, at.keys(), D, scale_);
  if (!rotation_.on()) return write_rows(caller.d_k, Tokens::Keys, at, tile);
  Acc<E>* total = as_sums<E>(tile);
  if (!kernels_.sums_are_tiles) {
    total = scratch.sums;
    void* rows[kTile];
    for (int64_t i = 0; i < kTile; ++i) rows[i] = i < at.keys() ? sums + i * head_pitch_ : nullptr;
    kernels_.pack_scores(total, lanes, {rows, 1, DType::Float32}, D);
    kernels_.scale_sums(total, total, D * lanes, scale_);
  }
  rotation_.turn(total, lanes, rotation_.angles(at, Tokens::Keys, scratch.angles), true);
  if (!kernels_.sums_are_tiles) kernels_.tile_of_sums(tile, total, lanes, D, TileOf::Tokens);
  write_rows(caller.d_k, Tokens::Keys, at, tile);
}

template <class E>
void Attention<E>::value_gradient(const TileAt& at, const Acc<E>* sums,
                                  const FinishScratch& scratch,
                                  const GradientTiles<E>& tiles) const {
  const int64_t Dv = plan_.heads.value_dim;
  const CallerArrays& caller = tiles.forward.in_place;
  E* const tile = caller.gradients ? scratch.tile : tiles.d_v + plan_.key_tile(at, Dv);
  kernels_.rows_to_tile(tile, at.key_lanes(), sums, value_pitch_, at.keys(), Dv,
                        factor_of_values());
  write_rows(caller.d_v, Tokens::Keys, at, tile);
}

// The keys of a group as backward's other products want them.
template <class E>
void Attention<E>::read_keys(const Item& item, const GroupScratch& sums,
                             const GradientTiles<E>& tiles) const {
  if (!kRounds<E>) return;
  for (int64_t t = sums.tiles.begin; t < sums.tiles.end; ++t) {
    const TileAt at = place(item, 0).with_keys(t);
    const int64_t i = t - sums.tiles.begin, D = plan_.heads.dim, Dv = plan_.heads.value_dim;
    kernels_.columns_of_keys(sums.k_columns + i * key_size(),
                             tiles.forward.k + plan_.key_tile_by_head(at, D), at.key_lanes(), D);
    kernels_.tokens_of_values(sums.v_tokens + i * value_size(),
                              tiles.forward.v + plan_.key_tile_by_head(at, Dv), at.key_lanes(), Dv);
  }
}

// One tile of queries against the keys of a group.
template <class E>
void Attention<E>::backward_queries(const TileAt& at, QueryBlock& own, const GroupScratch& sums,
                                    const Item* next, const GradientTiles<E>& tiles) const {
  const int64_t D = plan_.heads.dim, lanes = at.query_lanes();
  Acc<E>* const d_q = split_ ? partial_tile(at, sums.group) : sums.d_q;
  const KeyRange groups = groups_seen(at), visible = masks_.range(at);
  if (sums.group < groups.begin || sums.group >= groups.end) return;
  const KeyRange range{larger(sums.tiles.begin, visible.begin),
                       smaller(sums.tiles.end, visible.end)};
  bool any = false;
  masks_.dropout_rows(at, *own.rows);
  for (int64_t t = range.begin; t < range.end; ++t) {
    if (ending()) return;
    const TileAt here = at.with_keys(t);
    TileMask<E> mask;
    if (!masks_.tile(here, *own.rows, *own.mask, mask)) continue;
    if (!any) {
      own.load(*this, tiles, at);
      std::fill(d_q, d_q + D * lanes, Acc<E>(0));
      own.block.d_q = d_q;
      any = true;
    }
    own.meet(*this, tiles, here, mask);
    const int64_t i = t - sums.tiles.begin;
    own.block.k_columns = kRounds<E> ? KeyTile<E>{sums.k_columns + i * key_size()} : own.block.k;
    own.block.v_tokens = kRounds<E> ? KeyTile<E>{sums.v_tokens + i * value_size()} : own.block.v;
    own.block.d_k = sums.d_k + sums.keys_before(t) * head_pitch_;
    own.block.d_v = sums.d_v + sums.keys_before(t) * value_pitch_;
    PrefetchList list;
    prefetch_backward(list, here, range, {sums, next}, tiles);
    own.block.prefetch = list.get();
    kernels_.backward_block(own.block);
  }
  if (!any) std::fill(d_q, d_q + D * lanes, Acc<E>(0));
  if (split_) return;
  const int64_t before = at.head % plan_.heads.group() * at.sequence.query_tiles() + at.query_tile;
  Acc<E>* const so_far = sums.d_q_sums ? sums.d_q_sums + before * kTile * D : nullptr;
  add_group(at, sums.group, d_q, sums.finish.with(so_far), tiles);
}

// The groups of keys that queries see some of; one at least.
template <class E>
KeyRange Attention<E>::groups_seen(const TileAt& at) const {
  const KeyRange visible = masks_.range(at);
  const int64_t size = group_tiles(at.sequence);
  if (visible.begin >= visible.end) return {0, 1};
  return {visible.begin / size, divide_up(visible.end, size)};
}

// The gradient of q from one group after another, of those that are seen; `scratch` holds the sums
// where a tile cannot. A zero for all others turns a -0.
template <class E>
void Attention<E>::add_group(const TileAt& at, int64_t group, Acc<E>* sums,
                             const FinishScratch& scratch, const GradientTiles<E>& tiles) const {
  const int64_t D = plan_.heads.dim, n = D * at.query_lanes();
  const KeyRange seen = groups_seen(at);
  const CallerArrays& caller = tiles.forward.in_place;
  E* tile = caller.gradients ? scratch.tile : tiles.d_q + plan_.query_tile(at, D);
  Acc<E>* const total = sums_apart(kernels_, caller) ? scratch.sums : as_sums<E>(tile);
  if (group == seen.begin)
    kernels_.scale_sums(total, sums, n, scale_);
  else
    kernels_.add_scaled(total, sums, n, scale_);
  if (group + 1 < seen.end) return;
  if (seen.end - seen.begin < groups_of(at.sequence)) {
    std::fill(sums, sums + n, Acc<E>(0));
    kernels_.add_scaled(total, sums, n, scale_);
  }
  if (rotation_.on())
    rotation_.turn(total, at.query_lanes(), rotation_.angles(at, Tokens::Queries, scratch.angles),
                   true);
  if (!kernels_.sums_are_tiles)
    kernels_.tile_of_sums(tile, total, at.query_lanes(), D, TileOf::Tokens);
  else if (caller.gradients)
    tile = as_tile<E>(total);
  write_rows(caller.d_q, Tokens::Queries, at, tile);
}

// What comes after one tile of queries and one of keys: the rest of the first tile of queries wants
// the next keys; each tile of queries the one after it, a part with each tile of keys, and the
// place of its own d_q; the last one the places of d_k and d_v, and what the next task begins with.
template <class E>
void Attention<E>::prefetch_backward(PrefetchList& list, const TileAt& at, KeyRange range,
                                     const After& after, const GradientTiles<E>& tiles) const {
  const Sequence& s = at.sequence;
  const int64_t D = plan_.heads.dim, Dv = plan_.heads.value_dim, t = at.key_tile;
  const GroupScratch& sums = after.sums;
  const CallerArrays& caller = tiles.forward.in_place;
  const Share share{t - range.begin, range.end - range.begin};
  const auto queries = [&](const TileAt& of) {
    prefetch_queries(list, caller.q, tiles.forward.q, of, D, share);
    prefetch_queries(list, caller.d_out, tiles.d_out, of, Dv, share);
  };
  const bool last_tile = t + 1 == range.end;
  if (at.query_tile == 0 && !last_tile) prefetch_keys(list, tiles.forward, at.with_keys(t + 1));
  const bool last_group = sums.group + 1 == groups_seen(at).end;
  if (!split_ && (tiles.d_q || (caller.d_q && last_group)))
    prefetch_queries(list, caller.d_q, tiles.d_q, at, D, share);
  if (at.query_tile + 1 < s.query_tiles())
    return queries({s, at.batch, at.head, at.query_tile + 1});
  if ((at.head + 1) % plan_.heads.group() != 0) return queries({s, at.batch, at.head + 1, 0});
  const auto keys = [&](const View& in_place, const E* tiles_of, int64_t features) {
    if (tiles_of)
      list.add(tiles_of + plan_.key_tile(at, features),
               plan_.layout.size(features, at.key_lanes()));
    if (!in_place) return;
    void* rows[kTile];
    const TokenRows all = rows_of(in_place, Tokens::Keys, at, rows);
    list.add_rows(all, rows, at.keys(), features);
  };
  keys(caller.d_k, tiles.d_k, D);
  keys(caller.d_v, tiles.d_v, Dv);
  if (sums.group + 1 < groups_of(s)) {
    queries({s, at.batch, at.head + 1 - plan_.heads.group(), 0});
    if (last_tile) prefetch_keys(list, tiles.forward, at.with_keys(sums.tiles.end));
  } else if (after.next) {
    const TileAt next = place(*after.next, 0);
    if (next.sequence.queries > 0) queries(next);
    if (last_tile) prefetch_keys(list, tiles.forward, next);
  }
}

template <class E>
void Attention<E>::reduce(const Item& item, const GradientTiles<E>& tiles, Arena arena) const {
  const Sequence& s = plan_.sequences[size_t(item.sequence)];
  const FinishScratch scratch(arena, *this, tiles.forward.in_place);
  for (int64_t i = 0; i < plan_.heads.group(); ++i)
    for (int64_t tile = 0; tile < s.query_tiles(); ++tile) {
      const TileAt at = place(served(item, i), tile);
      const KeyRange seen = groups_seen(at);
      for (int64_t group = seen.begin; group < seen.end; ++group)
        add_group(at, group, partial_tile(at, group), scratch, tiles);
    }
}

template class Attention<BFloat16>;
template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
