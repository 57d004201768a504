#include "functional.h"

#include <limits>

#include "cpu.h"
#include "few_queries.h"
#include "run.h"

namespace multihead {
namespace {

template <class T>
struct Run : Call<T> {
  using Call<T>::plan, Call<T>::memory, Call<T>::k, Call<T>::phases;
  BatchShape shape;
  Masks<T> masks;
  Attention<T> attention;

  Run(const AttentionCall& call, const BatchShape& s)
      : Call<T>(attention_plan(call, s)),
        shape(s),
        masks(plan, k, call.attn_mask, call.true_hides, call.causal, call.dropout, call.offsets),
        attention(plan, k, masks, call.scale, memory) {}

  // f(sequence, batch, head, tile) for each tile of one head's queries or keys.
  template <class F>
  void each_tile(Tokens tokens, F f) {
    const std::vector<TileRef>& tiles =
        tokens == Tokens::Queries ? plan.query_tiles : plan.key_tiles;
    auto task_of = [this, f, &tiles](int64_t task, int) {
      const TileRef at = tiles[size_t(task / plan.heads)];
      f(plan.sequences[size_t(at.sequence)], int64_t(at.sequence), task % plan.heads,
        int64_t(at.tile));
    };
    phases.push_back({int64_t(tiles.size()) * plan.heads, std::move(task_of)});
  }

  // Pointers to the rows of a tile of an (N, H, tokens, features) array.
  template <class E>
  static void rows_of(const View& v, int64_t batch, int64_t head, int64_t tile, E** rows) {
    E* base = v.as<E>() + batch * v.stride[0] + head * v.stride[1];
    for (int64_t i = 0; i < kTile; ++i) {
      const int64_t token = tile * kTile + i;
      rows[i] = token < v.size[2] ? base + token * v.stride[2] : nullptr;
    }
  }
  // Tiles by tile (false) or by head (true), see plan.h.
  T* place(T* base, Tokens tokens, bool by_head, const Sequence& s, int64_t head, int64_t tile,
           int64_t dim) const {
    if (tokens == Tokens::Queries) return base + plan.query_tile(s, head, tile, dim);
    return base + (by_head ? plan.key_tile_by_head(s, head, tile, dim)
                           : plan.key_tile(s, head, tile, dim));
  }
  void read(const View& from, Tokens tokens, T* to) {
    each_tile(tokens, [=, this](const Sequence& s, int64_t b, int64_t h, int64_t t) {
      const T* rows[kTile];
      rows_of(from, b, h, t, rows);
      const int64_t width = tile_lanes(tokens == Tokens::Queries ? s.queries : s.keys, t);
      k.pack(place(to, tokens, true, s, h, t, from.size[3]), width, width, rows, from.stride[3],
             from.size[3]);
    });
  }
  void write(const T* from, Tokens tokens, const View& to) {
    if (!to) return;
    each_tile(tokens, [=, this](const Sequence& s, int64_t b, int64_t h, int64_t t) {
      T* rows[kTile];
      rows_of(to, b, h, t, rows);
      const int64_t width = tile_lanes(tokens == Tokens::Queries ? s.queries : s.keys, t);
      k.unpack(rows, to.stride[3], place(const_cast<T*>(from), tokens, false, s, h, t, to.size[3]),
               width, width, to.size[3], false);
    });
  }
  // One value per row, to or from the lanes of its tile.
  template <class F>
  void each_row(T* base, F f) {
    each_tile(Tokens::Queries, [=, this](const Sequence& s, int64_t b, int64_t h, int64_t t) {
      T* at = base + plan.query_row(s, h, t);
      for (int64_t i = 0; i < tile_lanes(s.queries, t); ++i)
        f(at[i], i < tile_tokens(s.queries, t), b, h, t * kTile + i);
    });
  }
};

template <class T>
AttentionTiles<T> layout_tiles(Arena& arena, const Plan& plan) {
  const int64_t D = plan.heads * plan.head_dim, Dv = plan.heads * plan.value_dim;
  AttentionTiles<T> tiles;
  tiles.q = arena.take<T>(plan.query_lanes * D);
  tiles.k = arena.take<T>(plan.key_lanes * D);
  tiles.v = arena.take<T>(plan.key_lanes * Dv);
  tiles.out = nullptr;
  tiles.row_max = arena.take<T>(plan.query_lanes * plan.heads);
  tiles.row_inv = arena.take<T>(plan.query_lanes * plan.heads);
  return tiles;
}

template <class T>
T& element(const View& stats, int64_t which, int64_t b, int64_t h, int64_t q) {
  return stats.as<T>()[which * stats.stride[0] + b * stats.stride[1] + h * stats.stride[2] +
                       q * stats.stride[3]];
}

template <class T>
void forward(const AttentionCall& call, const View& out, const View& stats,
             const WeightsView& weights) {
  Run<T> run(call, attention_shape(call, weights.heads > 0));
  AttentionTiles<T> tiles;
  const auto layout = [&](Arena& arena) {
    tiles = layout_tiles<T>(arena, run.plan);
    tiles.out = arena.take<T>(run.plan.query_lanes * run.plan.heads * run.plan.value_dim);
    run.masks.layout(arena, run.shape);
  };
  const auto layout_workers = [&](Arena& arena) { run.memory.layout(arena, run.workers); };
  const auto passes = [&] {
    run.masks.add_phases(run.phases, run.set);
    const size_t first = run.phases.size();
    run.read(call.q, Tokens::Queries, tiles.q);
    run.read(call.k, Tokens::Keys, tiles.k);
    run.read(call.v, Tokens::Keys, tiles.v);
    join_phases(run.phases, first);
    run.attention.add_forward(run.phases, tiles);
    run.write(tiles.out, Tokens::Queries, out);
    if (weights.heads) run.attention.add_weights(run.phases, tiles, weights);
    if (stats) {
      run.each_row(tiles.row_max, [=](T& x, bool real, int64_t b, int64_t h, int64_t q) {
        if (real) element<T>(stats, 0, b, h, q) = x;
      });
      run.each_row(tiles.row_inv, [=](T& x, bool real, int64_t b, int64_t h, int64_t q) {
        if (real) element<T>(stats, 1, b, h, q) = x;
      });
    }
  };
  execute(run, layout, layout_workers, passes, [&] {});
}

template <class T>
void backward(const AttentionCall& call, const View& stats, const View& delta, const View& d_out,
              const AttentionGradients& d) {
  Run<T> run(call, attention_shape(call, false));
  const Plan& plan = run.plan;
  const int64_t D = plan.heads * plan.head_dim, Dv = plan.heads * plan.value_dim;
  AttentionTiles<T> tiles;
  GradientTiles<T> g;
  const auto layout = [&](Arena& arena) {
    tiles = layout_tiles<T>(arena, plan);
    g.d_out = arena.take<T>(plan.query_lanes * Dv);
    g.delta = arena.take<T>(plan.query_lanes * plan.heads);
    g.d_q = arena.take<T>(plan.query_lanes * D);
    g.d_k = arena.take<T>(plan.key_lanes * D);
    g.d_v = arena.take<T>(plan.key_lanes * Dv);
    run.masks.layout(arena, run.shape);
  };
  const auto layout_workers = [&](Arena& arena) {
    run.attention.layout_backward(arena, run.workers);
    run.memory.layout(arena, run.workers);
  };
  const auto passes = [&] {
    run.masks.add_phases(run.phases, run.set);
    const size_t first = run.phases.size();
    run.read(call.q, Tokens::Queries, tiles.q);
    run.read(call.k, Tokens::Keys, tiles.k);
    run.read(call.v, Tokens::Keys, tiles.v);
    run.read(d_out, Tokens::Queries, g.d_out);
    run.each_row(tiles.row_max, [=](T& x, bool real, int64_t b, int64_t h, int64_t q) {
      x = real ? element<T>(stats, 0, b, h, q) : std::numeric_limits<T>::infinity();
    });
    run.each_row(tiles.row_inv, [=](T& x, bool real, int64_t b, int64_t h, int64_t q) {
      x = real ? element<T>(stats, 1, b, h, q) : T(0);
    });
    run.each_row(g.delta, [=](T& x, bool real, int64_t b, int64_t h, int64_t q) {
      x = real ? delta.as<T>()[b * delta.stride[0] + h * delta.stride[1] + q * delta.stride[2]]
               : T(0);
    });
    join_phases(run.phases, first);
    run.attention.add_backward(run.phases, tiles, g, WeightsView{}, run.workers);
    run.write(g.d_q, Tokens::Queries, d.q);
    run.write(g.d_k, Tokens::Keys, d.k);
    run.write(g.d_v, Tokens::Keys, d.v);
    if (d.attn_mask)
      run.attention.add_mask_gradient(run.phases, tiles, g, WeightsView{}, d.attn_mask);
  };
  execute(run, layout, layout_workers, passes, [&] {});
}

template <class T>
void row_dot_of(const View& a, const View& b, const View& result) {
  const int64_t N = a.size[0], H = a.size[1], L = a.size[2], D = a.size[3];
  const auto row = [&](const View& v, int64_t n, int64_t h, int64_t q) {
    return v.as<const T>() + n * v.stride[0] + h * v.stride[1] + q * v.stride[2];
  };
  run_phases(
      {{N * H,
        [&](int64_t task, int) {
          const int64_t n = task / H, h = task % H;
          for (int64_t q = 0; q < L; ++q) {
            const T *x = row(a, n, h, q), *y = row(b, n, h, q);
            T sum = 0;
            for (int64_t d = 0; d < D; ++d) sum += x[d * a.stride[3]] * y[d * b.stride[3]];
            result.as<T>()[n * result.stride[0] + h * result.stride[1] + q * result.stride[2]] =
                sum;
          }
        }}},
      num_threads());
}

}  // namespace

BatchShape attention_shape(const AttentionCall& call, bool weights) {
  BatchShape shape;
  shape.batch = call.q.size[0];
  shape.queries = call.q.size[2];
  shape.keys = call.k.size[2];
  shape.weight_heads = weights ? call.q.size[1] : 0;
  return shape;
}

Plan attention_plan(const AttentionCall& call, const BatchShape& shape) {
  Plan plan;
  plan.heads = call.q.size[1];
  plan.head_dim = call.q.size[3];
  plan.value_dim = call.v.size[3];
  make_plan(plan, shape);
  return plan;
}

void attention_forward(const AttentionCall& call, const View& out, const View& stats,
                       const WeightsView& weights) {
  if (few_queries(call) && !weights.heads) return few_queries_forward(call, out, stats);
  call.dtype == DType::Float32 ? forward<float>(call, out, stats, weights)
                               : forward<double>(call, out, stats, weights);
}

void attention_backward(const AttentionCall& call, const View& stats, const View& delta,
                        const View& d_out, const AttentionGradients& gradients) {
  call.dtype == DType::Float32 ? backward<float>(call, stats, delta, d_out, gradients)
                               : backward<double>(call, stats, delta, d_out, gradients);
}

void row_dot(const View& a, const View& b, const View& result) {
  a.dtype == DType::Float32 ? row_dot_of<float>(a, b, result) : row_dot_of<double>(a, b, result);
}

}  // namespace multihead
