#include "few_queries.h"

#include <algorithm>
#include <limits>

#include "../platform/compiler.h"
#include "cpu.h"
#include "run.h"

namespace multihead {
namespace {

constexpr int64_t kChunk = 512;  // keys
constexpr int64_t kChunkTiles = kChunk / kTile;
constexpr int64_t kMost = 4;  // queries

// What a chunk leaves for the merge, per query: the largest score, the sum, and values [pitch].
template <class T>
struct Partial {
  T *top, *sum, *out;
  bool* seen;
};

template <class T>
struct Few : Call<T> {
  using Call<T>::plan, Call<T>::memory, Call<T>::k, Call<T>::workers, Call<T>::phases;
  const AttentionCall& call;
  BatchShape shape;
  Masks<T> masks;
  int64_t queries, keys, chunks, pitch, q_pitch;
  Partial<T> partial;

  Few(const AttentionCall& c, const BatchShape& s)
      : Call<T>(attention_plan(c, s)),
        call(c),
        shape(s),
        masks(plan, k, c.attn_mask, c.true_hides, c.causal, c.dropout, c.offsets),
        queries(s.queries),
        keys(s.keys),
        chunks(divide_up(s.keys, kChunk)),
        pitch(round_up(plan.value_dim, kLane)),
        q_pitch(round_up(plan.head_dim, kLane)) {}

  int64_t at(int64_t task) const { return task * kMost; }

  struct Scratch {
    T *q, *s, *tile, *panel;
    TileScratch<T>* mask;
    Scratch(Arena& arena, int64_t pitch, int64_t q_pitch)
        : q(arena.take<T>(kMost * q_pitch)),
          s(arena.take<T>(kMost * kChunk)),
          tile(arena.take<T>(kTile * q_pitch)),
          panel(arena.take<T>(kTile * pitch)),
          mask(arena.take<TileScratch<T>>(1)) {}
  };

  void layout(Arena& arena) {
    const int64_t n = shape.batch * plan.heads * chunks * kMost;
    partial = {arena.take<T>(n), arena.take<T>(n), arena.take<T>(n * pitch), arena.take<bool>(n)};
    masks.layout(arena, shape);
  }

  const T* row(const View& v, int64_t b, int64_t h, int64_t i) const {
    return v.as<const T>() + b * v.stride[0] + h * v.stride[1] + i * v.stride[2];
  }

  // Asks for the rows of a tile ahead of their use.
  void fetch(const View& v, int64_t b, int64_t h, int64_t first) const {
    if (v.stride[3] != 1) return;
    for (int64_t i = first; i < smaller(first + kTile, keys); ++i) {
      const T* at = row(v, b, h, i);
      for (int64_t d = 0; d < v.size[3]; d += int64_t(kAlign / sizeof(T)))
        MULTIHEAD_PREFETCH_L1(at + d);
    }
  }

  void chunk(int64_t task, int worker) {
    const int64_t c = task % chunks, h = task / chunks % plan.heads, b = task / chunks / plan.heads;
    const Sequence& s = plan.sequences[size_t(b)];
    Arena arena = memory.of(worker);
    const Scratch scratch(arena, pitch, q_pitch);
    const int64_t D = plan.head_dim;
    const T scale = T(call.scale * 1.4426950408889634);
    for (int64_t i = 0; i < queries; ++i) {
      const T* q = row(call.q, b, h, i);
      for (int64_t d = 0; d < q_pitch; ++d)
        scratch.q[i * q_pitch + d] = d < D ? q[d * call.q.stride[3]] * scale : T(0);
    }
    DropoutRows rows;
    masks.dropout_rows(b, h, 0, rows);
    uint64_t visible[kMost][kChunkTiles] = {}, keep[kMost][kChunkTiles] = {};
    const int64_t first = c * kChunkTiles, tiles = smaller(kChunkTiles, tiles_of(keys) - first);
    bool hidden = false;
    for (int64_t t = 0; t < tiles; ++t) {
      TileMask<T> mask;
      T* at = scratch.s + t * kTile;
      const int64_t n = tile_tokens(keys, first + t);
      if (!masks.tile(s, b, h, 0, first + t, rows, *scratch.mask, mask)) {
        hidden = true;
        for (int64_t i = 0; i < queries; ++i)
          std::fill(at + i * kChunk, at + i * kChunk + kTile, T(0));
        continue;
      }
      const T* from = row(call.k, b, h, (first + t) * kTile);
      int64_t stride = call.k.stride[2];
      if (call.k.stride[3] != 1) {
        const T* rows_of[kTile];
        for (int64_t j = 0; j < n; ++j) rows_of[j] = row(call.k, b, h, (first + t) * kTile + j);
        k.gather(scratch.tile, q_pitch, rows_of, call.k.stride[3], D, n);
        from = scratch.tile;
        stride = q_pitch;
      }
      k.row_scores(at, kChunk, scratch.q, q_pitch, queries, from, stride, n, D);
      const uint64_t all = n == kTile ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
      const int64_t lanes = tile_lanes(queries, 0);
      for (int64_t i = 0; i < queries; ++i) {
        visible[i][t] = mask.visible ? 0 : all;
        keep[i][t] = mask.keep ? 0 : all;
        for (int64_t j = 0; j < n; ++j) {
          if (mask.visible) visible[i][t] |= (mask.visible[j] >> i & 1) << j;
          if (mask.keep) keep[i][t] |= (mask.keep[j] >> i & 1) << j;
          if (mask.bias) at[i * kChunk + j] += mask.bias[j * lanes + i];
        }
        hidden |= visible[i][t] != all;
      }
    }
    const int64_t begin = first * kTile, n = smaller(kChunk, keys - begin);
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t to = at(task) + i;
      uint64_t any = 0;
      for (int64_t t = 0; t < tiles; ++t) any |= visible[i][t];
      partial.seen[to] = any != 0;
      k.softmax_row(scratch.s + i * kChunk, tiles * kTile, visible[i],
                    masks.drops() ? keep[i] : nullptr, partial.top + to, partial.sum + to);
    }
    values(task, b, h, begin, n, scratch, hidden, visible);
  }

  // out = probabilities . v, tile by tile; hidden keys are skipped where v is not finite.
  void values(int64_t task, int64_t b, int64_t h, int64_t begin, int64_t n, const Scratch& scratch,
              bool hidden, const uint64_t (*visible)[kChunkTiles]) {
    const View& v = call.v;
    const int64_t Dv = plan.value_dim;
    const bool in_place = v.stride[3] == 1 && Dv == pitch;
    T* out = partial.out + at(task) * pitch;
    for (int64_t t = 0; t * kTile < n; ++t) {
      const int64_t m = tile_tokens(n, t), key = begin + t * kTile;
      fetch(v, b, h, key + kTile);
      const T* values = row(v, b, h, key);
      int64_t stride = v.stride[2];
      if (!in_place) {
        const T* from[kTile];
        for (int64_t j = 0; j < m; ++j) from[j] = row(v, b, h, key + j);
        k.gather(scratch.panel, pitch, from, v.stride[3], Dv, m);
        values = scratch.panel;
        stride = pitch;
      }
      const T* p = scratch.s + t * kTile;
      bool finite = true;
      for (int64_t j = 0; hidden && finite && j < m; ++j)
        finite = k.finite(values + j * stride, Dv);
      if (finite) {
        k.gemm({queries, pitch, m, p, kChunk, 1, values, stride, out, pitch,
                t == 0 ? Init::Zero : Init::Load});
        continue;
      }
      if (t == 0) std::fill(out, out + queries * pitch, T(0));
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < m; ++j)
          if (visible[i][t] >> j & 1)
            for (int64_t d = 0; d < Dv; ++d)
              out[i * pitch + d] += p[i * kChunk + j] * values[j * stride + d];
    }
  }

  // The chunks of one head, in order.
  void merge(int64_t task, const View& out, const View& stats) {
    const int64_t h = task % plan.heads, b = task / plan.heads;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < queries; ++i) {
      bool seen = false;
      T top = -infinity, sum = 0;
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t from = at(task * chunks + c) + i;
        seen |= partial.seen[from];
        if (partial.seen[from]) top = std::max(top, partial.top[from]);
      }
      T* total = partial.out + (at(task * chunks) + i) * pitch;
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t from = at(task * chunks + c) + i;
        T factor = partial.top[from] - (top == -infinity ? T(0) : top);
        k.exp2_all(&factor, 1);
        if (!partial.seen[from]) factor = 0;
        const T* part = partial.out + from * pitch;
        if (partial.seen[from]) sum += partial.sum[from] * factor;
        if (c == 0) {
          k.scale(total, part, pitch, factor);
        } else if (partial.seen[from]) {
          k.add_scaled(total, part, pitch, factor);
        }
      }
      const T inverse = seen ? T(1) / sum : T(0), scale = inverse * T(masks.keep_scale());
      T* to = out.as<T>() + b * out.stride[0] + h * out.stride[1] + i * out.stride[2];
      for (int64_t d = 0; d < plan.value_dim; ++d)
        to[d * out.stride[3]] = seen ? total[d] * scale : T(0);
      if (!stats) continue;
      T* row = stats.as<T>() + b * stats.stride[1] + h * stats.stride[2] + i * stats.stride[3];
      row[0] = seen ? top : infinity;
      row[stats.stride[0]] = inverse;
    }
  }
};

template <class T>
void forward(const AttentionCall& call, const View& out, const View& stats) {
  Few<T> few(call, attention_shape(call, false));
  const auto passes = [&] {
    Arena count;
    typename Few<T>::Scratch(count, few.pitch, few.q_pitch);
    few.memory.need(count.used());
    few.masks.add_phases(few.phases, few.set);
    const int64_t heads = few.shape.batch * few.plan.heads;
    few.phases.push_back(
        {heads * few.chunks, [&](int64_t task, int worker) { few.chunk(task, worker); }});
    few.phases.push_back({heads, [&](int64_t task, int) { few.merge(task, out, stats); }});
  };
  execute(
      few, [&](Arena& arena) { few.layout(arena); },
      [&](Arena& arena) { few.memory.layout(arena, few.workers); }, passes, [] {});
}

}  // namespace

void few_queries_forward(const AttentionCall& call, const View& out, const View& stats) {
  call.dtype == DType::Float32 ? forward<float>(call, out, stats)
                               : forward<double>(call, out, stats);
}

}  // namespace multihead
