#include "split_keys.h"

#include <algorithm>
#include <limits>

#include "interruption.h"
#include "keys.h"
#include "partial.h"

namespace multihead {
namespace {

constexpr int64_t kChunk = 512;  // keys
constexpr int64_t kChunkTiles = kChunk / kTile;
constexpr int64_t kMost = 4;   // rows at once
constexpr int64_t kTasks = 8;  // of a worker

// The queries of all heads that one head of keys serves are rows, head after head: they read its
// keys together.
template <class E>
class SplitKeys {
 public:
  explicit SplitKeys(const AttentionCall& call)
      : call_(call),
        run_(call.attention, call.resources, kernels_or_in_use(call.resources.kernels)),
        queries_(call.attention.shape.queries),
        rows_(run_.plan.heads.group() * queries_),
        chunks_(divide_up(call.attention.shape.keys, kChunk)),
        q_pitch_(round_up(run_.plan.heads.dim, kLane)),
        v_pitch_(round_up(run_.plan.heads.value_dim, kLane)),
        has_rules_(call.attention.rules.softcap != 0 || call.attention.rules.alibi_slopes),
        log2_scale_(log2_scale<Acc<E>>(call.attention.rules)) {}

  void forward(const View& out, const View& stats);

 private:
  // A chunk of the keys of one head at hand.
  struct Chunk {
    TileAt at;         // of its first tile, and the first head that it serves
    int64_t key_head;  // of k and v
    int64_t tiles;     // of keys
    int64_t task;

    TileAt tile(int64_t t, int64_t head) const {
      return {at.sequence, at.batch, at.head + head, 0, at.key_tile + t};
    }
  };
  struct Scratch {
    E *q, *key_rows, *value_rows;
    Acc<E>* s;                 // [row][kChunk]
    uint64_t *visible, *keep;  // [row][kChunkTiles]
    Acc<E>* factors;           // likewise: of the scores, until rules have multiplied by it
    TileScratch<E>* mask;
    DropoutRows* random;          // of each head
    bool hides = false;           // something in a tile that is seen
    bool seen[kChunkTiles] = {};  // tiles

    Scratch(Arena& arena, const SplitKeys& of)
        : q(arena.take<E>(of.rows_ * of.q_pitch_)),
          key_rows(arena.take<E>(kTile * of.q_pitch_)),
          value_rows(arena.take<E>(kTile * of.v_pitch_)),
          s(arena.take<Acc<E>>(of.rows_ * kChunk)),
          visible(arena.take<uint64_t>(of.rows_ * kChunkTiles)),
          keep(arena.take<uint64_t>(of.rows_ * kChunkTiles)),
          factors(arena.take<Acc<E>>(of.rows_ * kChunkTiles)),
          mask(arena.take<TileScratch<E>>(1)),
          random(arena.take<DropoutRows>(of.run_.plan.heads.group())) {}

    // Visible and kept keys of a tile for one row.
    uint64_t& visible_to(int64_t row, int64_t tile) { return visible[row * kChunkTiles + tile]; }
    uint64_t& kept_for(int64_t row, int64_t tile) { return keep[row * kChunkTiles + tile]; }
    Acc<E>& factor(int64_t row, int64_t tile) { return factors[row * kChunkTiles + tile]; }
  };

  Chunk chunk_of(int64_t task) const {
    const int64_t Hk = run_.plan.heads.key_count, c = task % chunks_, head = task / chunks_;
    const Sequence& s = run_.plan.sequences[size_t(head / Hk)];
    const int64_t first = c * kChunkTiles, left = larger(0, s.key_tiles() - first);
    return {{s, head / Hk, head % Hk * run_.plan.heads.group(), 0, first},
            head % Hk,
            smaller(kChunkTiles, left),
            task};
  }
  // What a chunk leaves for the merge, for each of its rows.
  Partial<E> partial(int64_t task, int64_t row) const {
    const int64_t at = task * rows_ + row;
    return {max_[at], sum_[at], out_ + at * v_pitch_, seen_[at]};
  }

  void layout(Arena& arena);
  void attend(const Chunk& chunk, Arena arena) const;
  void load_queries(const Chunk& chunk, Scratch& scratch) const;
  void scores(const Chunk& chunk, int64_t tile, Scratch& scratch) const;
  void multiply_keys(const Chunk& chunk, int64_t tile, Scratch& scratch) const;
  void apply_rules(const TileAt& at, const TileMask<E>& mask, int64_t row, Acc<E>* s) const;
  void note_mask(const TileAt& at, const TileMask<E>& mask, int64_t tile, int64_t row,
                 Scratch& scratch) const;
  void values(const Chunk& chunk, Scratch& scratch) const;
  void merge(int64_t head, const View& out, const View& stats) const;

  const AttentionCall& call_;
  PreparedCall<E> run_;
  const int64_t queries_, rows_, chunks_, q_pitch_, v_pitch_;
  const bool has_rules_;
  const Acc<E> log2_scale_;
  Stat<E>*max_ = nullptr, *sum_ = nullptr;
  Acc<E>* out_ = nullptr;
  bool* seen_ = nullptr;
};

template <class E>
void SplitKeys<E>::layout(Arena& arena) {
  const int64_t n = call_.attention.shape.batch * run_.plan.heads.key_count * chunks_ * rows_;
  max_ = arena.take<Stat<E>>(n);
  sum_ = arena.take<Stat<E>>(n);
  out_ = arena.take<Acc<E>>(n * v_pitch_);
  seen_ = arena.take<bool>(n);
  run_.masks.layout(arena);
}

template <class E>
void SplitKeys<E>::forward(const View& out, const View& stats) {
  run_.run(
      [&](Arena& arena) { layout(arena); }, [](Arena&) {}, bytes_of<Scratch>(*this),
      [&] {
        run_.masks.add_reading(run_.phases);
        join_phases(run_.phases, 0);
        const Heads& heads = run_.plan.heads;
        const int64_t batch = call_.attention.shape.batch;
        const int64_t all = batch * heads.key_count * chunks_;
        const int64_t run = larger(1, all / (kTasks * run_.memory.workers()));  // side by side
        run_.phases.push_back({divide_up(all, run), [this, all, run](int64_t task, int worker) {
                                 const int64_t end = smaller(all, (task + 1) * run);
                                 for (int64_t c = task * run; c < end; ++c)
                                   attend(chunk_of(c), run_.memory.of(worker));
                               }});
        run_.phases.push_back({batch * heads.count, [this, &out, &stats](int64_t head, int) {
                                 merge(head, out, stats);
                               }});
      });
}

template <class E>
void SplitKeys<E>::attend(const Chunk& chunk, Arena arena) const {
  Scratch scratch(arena, *this);
  for (int64_t g = 0; g < run_.plan.heads.group(); ++g)
    run_.masks.dropout_rows(chunk.tile(0, g), scratch.random[g]);
  load_queries(chunk, scratch);
  bool any = false;
  for (int64_t t = 0; t < chunk.tiles && !ending(); ++t) {
    scores(chunk, t, scratch);
    any |= scratch.seen[t];
  }
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t to = chunk.task * rows_ + row;
    seen_[to] = false;
    if (!any) continue;
    for (int64_t t = 0; t < chunk.tiles; ++t) seen_[to] |= scratch.visible_to(row, t) != 0;
    run_.kernels.softmax_row({.s = scratch.s + row * kChunk,
                              .keys = chunk.tiles * kTile,
                              .factors = &scratch.factor(row, 0),
                              .visible = &scratch.visible_to(row, 0),
                              .keep = run_.masks.drops() ? &scratch.kept_for(row, 0) : nullptr,
                              .top = max_ + to,
                              .sum = sum_ + to});
  }
  values(chunk, scratch);
}

template <class E>
void SplitKeys<E>::load_queries(const Chunk& chunk, Scratch& scratch) const {
  const int64_t D = run_.plan.heads.dim;
  const void* rows[kMost];
  for (int64_t g = 0; g < run_.plan.heads.group(); ++g) {
    const TokenRows from =
        head_rows(call_.q, chunk.at.sequence, Tokens::Queries, chunk.at.batch, chunk.at.head + g);
    for (int64_t i = 0; i < queries_; ++i) rows[i] = from.row(i);
    run_.kernels.gather_rows(scratch.q + g * queries_ * q_pitch_, q_pitch_,
                             {rows, from.stride, from.type}, D, queries_);
  }
}

// Of one tile of keys, and what masks say of them: of each head, or of the first for all of them.
template <class E>
void SplitKeys<E>::scores(const Chunk& chunk, int64_t tile, Scratch& scratch) const {
  const int64_t heads = run_.plan.heads.group(), looks = run_.masks.by_head() ? heads : 1;
  const int64_t rows = rows_ / looks;
  for (int64_t row = 0; row < rows_; ++row) scratch.factor(row, tile) = log2_scale_;
  for (int64_t g = 0; g < looks; ++g) {
    const TileAt at = chunk.tile(tile, g);
    const int64_t first = g * rows;
    TileMask<E> mask;
    if (!run_.masks.tile(at, scratch.random[g], *scratch.mask, mask)) {
      scratch.hides = true;
      for (int64_t row = first; row < first + rows; ++row) {
        scratch.visible_to(row, tile) = scratch.kept_for(row, tile) = 0;
        if (!scratch.seen[tile])
          std::fill_n(scratch.s + row * kChunk + tile * kTile, kTile, Acc<E>(0));
      }
      continue;
    }
    if (!scratch.seen[tile]) multiply_keys(chunk, tile, scratch);
    scratch.seen[tile] = true;
    note_mask(at, mask, tile, first, scratch);
    for (int64_t row = first + queries_; row < first + rows; ++row) {
      scratch.visible_to(row, tile) = scratch.visible_to(row - queries_, tile);
      scratch.kept_for(row, tile) = scratch.kept_for(row - queries_, tile);
    }
    if (!has_rules_ && !mask.bias) continue;
    for (int64_t row = first; row < first + rows; ++row) {
      apply_rules(chunk.tile(tile, row / queries_), mask, row % queries_,
                  scratch.s + row * kChunk + tile * kTile);
      scratch.factor(row, tile) = 1;
    }
  }
}

// The products of all rows with the keys of a tile.
template <class E>
void SplitKeys<E>::multiply_keys(const Chunk& chunk, int64_t tile, Scratch& scratch) const {
  const TileAt at = chunk.tile(tile, 0);
  const int64_t n = at.keys(), D = run_.plan.heads.dim;
  const TokenRows keys = head_rows(call_.k, at.sequence, Tokens::Keys, at.batch, chunk.key_head);
  StoredRows stored = keys.stored(at.first_key());
  if (keys.stride != 1) {
    void* from[kTile];
    keys.tile(at.key_tile, at.sequence.keys, from);
    run_.kernels.gather_rows(scratch.key_rows, q_pitch_, keys.source(from), D, n);
    stored = {scratch.key_rows, q_pitch_, kTypeOf<E>};
  }
  for (int64_t row = 0; row < rows_; row += kMost)
    run_.kernels.row_scores({.queries = smaller(kMost, rows_ - row),
                             .keys = n,
                             .head_dim = D,
                             .q = scratch.q + row * q_pitch_,
                             .q_row = q_pitch_,
                             .k = stored,
                             .s = scratch.s + row * kChunk + tile * kTile,
                             .s_row = kChunk});
}

// What rules and masks make of a query's scores with a tile.
template <class E>
void SplitKeys<E>::apply_rules(const TileAt& at, const TileMask<E>& mask, int64_t query,
                               Acc<E>* s) const {
  const ScoreRules& rules = call_.attention.rules;
  RowRules<E> r{
      .s = s, .keys = at.keys(), .factor = log2_scale_, .softcap = Acc<E>(rules.softcap * kLog2E)};
  if (mask.distance) {
    const View& slopes = rules.alibi_slopes;
    r.slope = Acc<E>(slopes.get<Acc<E>>(slopes.at(at.batch, at.head)) * kLog2E);
    r.distance = mask.distance;
    r.query = Acc<E>(query);
  }
  run_.kernels.row_rules(r);
  for (int64_t j = 0; mask.bias && j < at.keys(); ++j)
    s[j] += mask.bias[j * at.query_lanes() + query];
}

// A tile's words, a bit per query, as words of each row, a bit per key.
template <class E>
void SplitKeys<E>::note_mask(const TileAt& at, const TileMask<E>& mask, int64_t tile, int64_t row,
                             Scratch& scratch) const {
  const int64_t n = at.keys();
  const uint64_t all = n == kTile ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  for (int64_t i = 0; i < queries_; ++i) {
    uint64_t visible = mask.visible ? 0 : all, keep = mask.keep ? 0 : all;
    for (int64_t j = 0; mask.visible && j < n; ++j) visible |= (mask.visible[j] >> i & 1) << j;
    for (int64_t j = 0; mask.keep && j < n; ++j) keep |= (mask.keep[j] >> i & 1) << j;
    scratch.visible_to(row + i, tile) = visible;
    scratch.kept_for(row + i, tile) = keep;
    scratch.hides |= visible != all;
  }
}

// out = probabilities . v, tile by tile; hidden keys are skipped where v is not finite.
template <class E>
void SplitKeys<E>::values(const Chunk& chunk, Scratch& scratch) const {
  const TokenRows rows =
      head_rows(call_.v, chunk.at.sequence, Tokens::Keys, chunk.at.batch, chunk.key_head);
  const int64_t Dv = run_.plan.heads.value_dim;
  const bool in_place = rows.stride == 1 && Dv == v_pitch_;
  Acc<E>* const out = out_ + chunk.task * rows_ * v_pitch_;
  std::fill(out, out + rows_ * v_pitch_, Acc<E>(0));
  for (int64_t t = 0; t < chunk.tiles; ++t) {
    if (!scratch.seen[t]) continue;
    const TileAt at = chunk.tile(t, 0);
    const int64_t n = at.keys();
    StoredRows values = rows.stored(at.first_key());
    if (!in_place) {
      void* from[kTile];
      rows.tile(at.key_tile, at.sequence.keys, from);
      run_.kernels.gather_rows(scratch.value_rows, v_pitch_, rows.source(from), Dv, n);
      values = {scratch.value_rows, v_pitch_, kTypeOf<E>};
    }
    const Acc<E>* const p = scratch.s + t * kTile;
    if (!scratch.hides || run_.kernels.rows_are_finite(values, n, Dv)) {
      run_.kernels.row_gemm({.queries = rows_,
                             .keys = n,
                             .columns = v_pitch_,
                             .p = p,
                             .p_row = kChunk,
                             .v = values,
                             .c = out});
      continue;
    }
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t d = 0; d < Dv; ++d) {
        Acc<E> sum = 0;
        for (int64_t j = 0; j < n; ++j)
          if (scratch.visible_to(row, t) >> j & 1)
            sum += p[row * kChunk + j] * element<E>(values.data, j * values.row + d, values.type);
        out[row * v_pitch_ + d] += sum;
      }
  }
}

// The chunks of one head, in order.
template <class E>
void SplitKeys<E>::merge(int64_t head, const View& out, const View& stats) const {
  const Heads& heads = run_.plan.heads;
  const int64_t h = head % heads.count, n = head / heads.count;
  const int64_t first = (n * heads.key_count + h / heads.group()) * chunks_;
  const int64_t first_query = run_.plan.sequences[size_t(n)].first_query;
  const View& sinks = call_.attention.rules.sinks;
  const Stat<E> sink = sinks ? Stat<E>(sinks.get<Acc<E>>(sinks.at(h)) * kLog2E) : Stat<E>(0);
  for (int64_t i = 0; i < queries_; ++i) {
    const int64_t row = h % heads.group() * queries_ + i;
    Merge<E> merge(run_.kernels, v_pitch_);
    for (int64_t c = 0; c < chunks_; ++c) merge.see(partial(first + c, row));
    if (sinks) merge.see(sink);
    for (int64_t c = 0; c < chunks_; ++c) merge.add(partial(first + c, row));
    if (sinks) merge.add(sink);
    const bool seen = merge.seen();
    const Stat<E> inverse = seen ? Stat<E>(1) / merge.sum() : Stat<E>(0);
    const Acc<E> scale = inverse * Acc<E>(run_.masks.keep_scale());
    for (int64_t d = 0; d < heads.value_dim; ++d)
      out.set(out.at(n, h, first_query + i, d), seen ? Acc<E>(merge.out()[d] * scale) : Acc<E>(0));
    if (!stats) continue;
    Stat<E>* const to = stats.as<Stat<E>>() + stats.at(0, n, h, first_query + i);
    to[0] = seen ? merge.max() : std::numeric_limits<Stat<E>>::infinity();
    to[stats.stride[0]] = inverse;
  }
}

}  // namespace

void split_keys_forward(const AttentionCall& call, const View& out, const View& stats) {
  if (call.attention.shape.queries == 0) return;  // which have no rows in a mask either
  dispatch(call.attention.dtype, [&]<class E>() { SplitKeys<E>(call).forward(out, stats); });
}

}  // namespace multihead
