#include "split_keys.h"

#include <algorithm>
#include <limits>

#include "keys.h"
#include "partial.h"

namespace multihead {
namespace {

constexpr int64_t kChunk = 512;  // keys
constexpr int64_t kChunkTiles = kChunk / kTile;
constexpr int64_t kMost = 4;  // queries

template <class E>
class SplitKeys {
 public:
  explicit SplitKeys(const AttentionCall& call)
      : call_(call),
        run_(call.attention, call.resources, kernels_or_in_use(call.resources.kernels)),
        queries_(call.attention.shape.queries),
        keys_(call.attention.shape.keys),
        chunks_(divide_up(keys_, kChunk)),
        q_pitch_(round_up(run_.plan.heads.dim, kLane)),
        v_pitch_(round_up(run_.plan.heads.value_dim, kLane)) {}

  void forward(const View& out, const View& stats);

 private:
  // A chunk of one head's keys at hand.
  struct Chunk {
    TileAt at;      // of its first tile
    int64_t tiles;  // of keys
    int64_t task;
  };
  struct Scratch {
    E *q, *key_rows, *value_rows;
    Acc<E>* s;
    TileScratch<E>* mask;
    uint64_t visible[kMost][kChunkTiles] = {}, keep[kMost][kChunkTiles] = {};
    bool hides = false;  // a mask hides something

    Scratch(Arena& arena, const SplitKeys& of)
        : q(arena.take<E>(kMost * of.q_pitch_)),
          key_rows(arena.take<E>(kTile * of.q_pitch_)),
          value_rows(arena.take<E>(kTile * of.v_pitch_)),
          s(arena.take<Acc<E>>(kMost * kChunk)),
          mask(arena.take<TileScratch<E>>(1)) {}
  };

  Chunk chunk_of(int64_t task) const {
    const int64_t H = run_.plan.heads.count, c = task % chunks_, head = task / chunks_;
    const Sequence& s = run_.plan.sequences[size_t(head / H)];
    const int64_t first = c * kChunkTiles;
    return {{s, head / H, head % H, 0, first}, smaller(kChunkTiles, tiles_of(keys_) - first), task};
  }
  // What a chunk leaves for the merge, for each of its queries.
  Partial<E> partial(int64_t task, int64_t query) const {
    const int64_t at = task * kMost + query;
    return {max_[at], sum_[at], out_ + at * v_pitch_, seen_[at]};
  }

  void layout(Arena& arena);
  void attend(const Chunk& chunk, Arena arena) const;
  void load_queries(const Chunk& chunk, Scratch& scratch) const;
  void scores(const Chunk& chunk, int64_t tile, const DropoutRows& rows, Scratch& scratch) const;
  void note_mask(const TileMask<E>& mask, int64_t tile, int64_t n, Scratch& scratch) const;
  void values(const Chunk& chunk, const Scratch& scratch) const;
  void merge(int64_t head, const View& out, const View& stats) const;

  const AttentionCall& call_;
  PreparedCall<E> run_;
  const int64_t queries_, keys_, chunks_, q_pitch_, v_pitch_;
  Stat<E>*max_ = nullptr, *sum_ = nullptr;
  Acc<E>* out_ = nullptr;
  bool* seen_ = nullptr;
};

template <class E>
void SplitKeys<E>::layout(Arena& arena) {
  const int64_t n = call_.attention.shape.batch * run_.plan.heads.count * chunks_ * kMost;
  max_ = arena.take<Stat<E>>(n);
  sum_ = arena.take<Stat<E>>(n);
  out_ = arena.take<Acc<E>>(n * v_pitch_);
  seen_ = arena.take<bool>(n);
  run_.masks.layout(arena);
}

template <class E>
void SplitKeys<E>::forward(const View& out, const View& stats) {
  Arena none;
  Scratch(none, *this);
  run_.run([&](Arena& arena) { layout(arena); }, [](Arena&) {}, none.used(),
           [&] {
             run_.masks.add_reading(run_.phases);
             join_phases(run_.phases, 0);
             const int64_t heads = call_.attention.shape.batch * run_.plan.heads.count;
             run_.phases.push_back({heads * chunks_, [this](int64_t task, int worker) {
                                      attend(chunk_of(task), run_.memory.of(worker));
                                    }});
             run_.phases.push_back(
                 {heads, [this, &out, &stats](int64_t head, int) { merge(head, out, stats); }});
           });
}

template <class E>
void SplitKeys<E>::attend(const Chunk& chunk, Arena arena) const {
  Scratch scratch(arena, *this);
  load_queries(chunk, scratch);
  DropoutRows rows;
  run_.masks.dropout_rows(chunk.at, rows);
  for (int64_t t = 0; t < chunk.tiles; ++t) scores(chunk, t, rows, scratch);
  for (int64_t i = 0; i < queries_; ++i) {
    const int64_t to = chunk.task * kMost + i;
    uint64_t any = 0;
    for (int64_t t = 0; t < chunk.tiles; ++t) any |= scratch.visible[i][t];
    seen_[to] = any != 0;
    run_.kernels.softmax_row(scratch.s + i * kChunk, chunk.tiles * kTile, scratch.visible[i],
                             run_.masks.drops() ? scratch.keep[i] : nullptr, max_ + to, sum_ + to);
  }
  values(chunk, scratch);
}

template <class E>
void SplitKeys<E>::load_queries(const Chunk& chunk, Scratch& scratch) const {
  const TokenRows rows = head_rows(call_.q, chunk.at.batch, chunk.at.head);
  const int64_t D = run_.plan.heads.dim;
  const Acc<E> scale = log2_scale<Acc<E>>(call_.attention.rules);
  for (int64_t i = 0; i < queries_; ++i)
    for (int64_t d = 0; d < D; ++d)
      scratch.q[i * q_pitch_ + d] =
          E(element<Acc<E>>(rows.row(i), d * rows.stride, rows.type) * scale);
}

// Of one tile of keys, and what masks say of them.
template <class E>
void SplitKeys<E>::scores(const Chunk& chunk, int64_t tile, const DropoutRows& rows,
                          Scratch& scratch) const {
  const TileAt at = chunk.at.with_keys(chunk.at.key_tile + tile);
  const int64_t n = at.keys(), D = run_.plan.heads.dim;
  Acc<E>* const to = scratch.s + tile * kTile;
  TileMask<E> mask;
  if (!run_.masks.tile(at, rows, *scratch.mask, mask)) {
    scratch.hides = true;
    for (int64_t i = 0; i < queries_; ++i)
      std::fill(to + i * kChunk, to + i * kChunk + kTile, Acc<E>(0));
    return;
  }
  const TokenRows keys = head_rows(call_.k, at.batch, at.head);
  RowScores<E> t{.queries = queries_,
                 .keys = n,
                 .head_dim = D,
                 .q = scratch.q,
                 .q_row = q_pitch_,
                 .k = keys.stored(at.first_key()),
                 .s = to,
                 .s_row = kChunk};
  if (keys.stride != 1) {
    void* from[kTile];
    keys.tile(at.key_tile, keys_, from);
    run_.kernels.gather_rows(scratch.key_rows, q_pitch_, keys.source(from), D, n);
    t.k = {scratch.key_rows, q_pitch_, kTypeOf<E>};
  }
  run_.kernels.row_scores(t);
  for (int64_t i = 0; mask.bias && i < queries_; ++i)
    for (int64_t j = 0; j < n; ++j) to[i * kChunk + j] += mask.bias[j * at.query_lanes() + i];
  note_mask(mask, tile, n, scratch);
}

// A tile's words, a bit per query, as words of each query, a bit per key.
template <class E>
void SplitKeys<E>::note_mask(const TileMask<E>& mask, int64_t tile, int64_t n,
                             Scratch& scratch) const {
  const uint64_t all = n == kTile ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  for (int64_t i = 0; i < queries_; ++i) {
    uint64_t visible = mask.visible ? 0 : all, keep = mask.keep ? 0 : all;
    for (int64_t j = 0; mask.visible && j < n; ++j) visible |= (mask.visible[j] >> i & 1) << j;
    for (int64_t j = 0; mask.keep && j < n; ++j) keep |= (mask.keep[j] >> i & 1) << j;
    scratch.visible[i][tile] = visible;
    scratch.keep[i][tile] = keep;
    scratch.hides |= visible != all;
  }
}

// out = probabilities . v, tile by tile; hidden keys are skipped where v is not finite.
template <class E>
void SplitKeys<E>::values(const Chunk& chunk, const Scratch& scratch) const {
  const TokenRows rows = head_rows(call_.v, chunk.at.batch, chunk.at.head);
  const int64_t Dv = run_.plan.heads.value_dim;
  const bool in_place = rows.stride == 1 && Dv == v_pitch_;
  Acc<E>* const out = out_ + chunk.task * kMost * v_pitch_;
  for (int64_t t = 0; t < chunk.tiles; ++t) {
    const TileAt at = chunk.at.with_keys(chunk.at.key_tile + t);
    const int64_t n = at.keys();
    StoredRows values = rows.stored(at.first_key());
    if (!in_place) {
      void* from[kTile];
      rows.tile(at.key_tile, keys_, from);
      run_.kernels.gather_rows(scratch.value_rows, v_pitch_, rows.source(from), Dv, n);
      values = {scratch.value_rows, v_pitch_, kTypeOf<E>};
    }
    const Acc<E>* const p = scratch.s + t * kTile;
    if (!scratch.hides || run_.kernels.rows_are_finite(values, n, Dv)) {
      run_.kernels.row_gemm({.queries = queries_,
                             .keys = n,
                             .columns = v_pitch_,
                             .p = p,
                             .p_row = kChunk,
                             .v = values,
                             .c = out,
                             .adds = t > 0});
      continue;
    }
    if (t == 0) std::fill(out, out + queries_ * v_pitch_, Acc<E>(0));
    for (int64_t i = 0; i < queries_; ++i)
      for (int64_t j = 0; j < n; ++j)
        if (scratch.visible[i][t] >> j & 1)
          for (int64_t d = 0; d < Dv; ++d)
            out[i * v_pitch_ + d] +=
                p[i * kChunk + j] * element<E>(values.data, j * values.row + d, values.type);
  }
}

// The chunks of one head, in order.
template <class E>
void SplitKeys<E>::merge(int64_t head, const View& out, const View& stats) const {
  const int64_t h = head % run_.plan.heads.count, n = head / run_.plan.heads.count;
  for (int64_t i = 0; i < queries_; ++i) {
    Merge<E> merge(run_.kernels, v_pitch_);
    for (int64_t c = 0; c < chunks_; ++c) merge.see(partial(head * chunks_ + c, i));
    for (int64_t c = 0; c < chunks_; ++c) merge.add(partial(head * chunks_ + c, i));
    const bool seen = merge.seen();
    const Stat<E> inverse = seen ? Stat<E>(1) / merge.sum() : Stat<E>(0);
    const Acc<E> scale = inverse * Acc<E>(run_.masks.keep_scale());
    for (int64_t d = 0; d < run_.plan.heads.value_dim; ++d)
      out.set(out.at(n, h, i, d), seen ? Acc<E>(merge.out()[d] * scale) : Acc<E>(0));
    if (!stats) continue;
    Stat<E>* const row = stats.as<Stat<E>>() + stats.at(0, n, h, i);
    row[0] = seen ? merge.max() : std::numeric_limits<Stat<E>>::infinity();
    row[stats.stride[0]] = inverse;
  }
}

}  // namespace

void split_keys_forward(const AttentionCall& call, const View& out, const View& stats) {
  dispatch(call.attention.dtype, [&]<class E>() { SplitKeys<E>(call).forward(out, stats); });
}

}  // namespace multihead
