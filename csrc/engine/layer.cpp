#include "layer.h"

#include <cmath>

#include "cpu.h"
#include "run.h"

namespace multihead {
namespace {

bool same(const View& a, const View& b) {
  if (a.data != b.data || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i)
    if (a.size[i] != b.size[i] || (a.size[i] > 1 && a.stride[i] != b.stride[i])) return false;
  return true;
}

Plan plan_of(const LayerCall& call) {
  Plan plan;
  plan.heads = call.parameters.query.weight.size[0];
  plan.head_dim = call.parameters.query.weight.size[1];
  plan.value_dim = call.parameters.value.weight.size[1];
  plan.bias_key = bool(call.parameters.bias_k);
  plan.zero_row = call.zero_row;
  make_plan(plan, call.shape);
  return plan;
}

// What forward leaves for backward.
template <class T>
AttentionTiles<T> layout_cache(Arena& arena, const Plan& plan) {
  const int64_t D = plan.heads * plan.head_dim, Dv = plan.heads * plan.value_dim;
  AttentionTiles<T> tiles;
  tiles.q = arena.take<T>(plan.query_lanes * D);
  tiles.k = arena.take<T>(plan.key_lanes * D);
  tiles.v = arena.take<T>(plan.key_lanes * Dv);
  tiles.out = arena.take<T>(plan.query_lanes * Dv);
  tiles.row_max = arena.take<T>(plan.query_lanes * plan.heads);
  tiles.row_inv = arena.take<T>(plan.query_lanes * plan.heads);
  return tiles;
}

// What both directions have in common.
template <class T>
struct Run : Call<T> {
  using Call<T>::plan, Call<T>::memory, Call<T>::k, Call<T>::workers;
  Masks<T> masks;
  Attention<T> attention;
  Projection<T> projection;

  explicit Run(const LayerCall& call)
      : Call<T>(plan_of(call), call.resources),
        masks(plan, k, call.attn_mask, true, call.causal, call.dropout, Offsets{}),
        attention(plan, k, masks, 1.0 / std::sqrt(double(plan.head_dim)), memory),
        projection(plan, k, memory, workers) {
    if (by_sequence()) attention.go_by_sequence();
  }

  // Whether queries and keys are the same tokens, tile by tile.
  bool one_input(const LayerCall& call) const {
    return same(call.query, call.key) && same(call.query, call.value) && !call.shape.key_padding &&
           plan.extra() == 0;
  }
  // Whether a worker takes one sequence after another through several passes: there are enough of
  // them, and what they leave between passes stays in L2.
  bool by_sequence() const {
    constexpr int64_t kSmall = 65536;  // elements of an array of one sequence
    int64_t longest = 0;
    for (const Sequence& s : plan.sequences) longest = larger(longest, larger(s.queries, s.keys));
    return int64_t(plan.sequences.size()) >= 4 * workers &&
           longest * plan.heads * larger(plan.head_dim, plan.value_dim) <= kSmall;
  }
  // The padding's additive values; null where it has none.
  T* layout_padding(Arena& arena, const LayerCall& call) const {
    return padding_adds(call.shape) ? arena.take<T>(plan.key_lanes) : nullptr;
  }
  void set_padding(const LayerCall& call, T* values) {
    if (values && padding_bias(plan, call.shape, values)) masks.set_padding(values);
  }
};

// Both directions return the bytes of workspace that they need, and stop there if asked for no
// more.

template <class T>
size_t forward(const LayerCall& call, const View& out, const WeightsView& weights, void* cache,
               bool only_size) {
  Run<T> run(call);
  const Parameters& p = call.parameters;
  AttentionTiles<T> tiles;
  Factor<T> to_q = Factor<T>::heads(p.query), to_k = Factor<T>::heads(p.key),
            to_v = Factor<T>::heads(p.value), to_out = Factor<T>::features(p.out, p.out.bias);
  T* padding = nullptr;
  const auto layout = [&](Arena& arena) {
    Arena kept(cache);
    tiles = layout_cache<T>(cache ? kept : arena, run.plan);
    for (Factor<T>* f : {&to_q, &to_out}) f->layout(arena, run.plan.query_lanes);
    for (Factor<T>* f : {&to_k, &to_v}) f->layout(arena, run.plan.key_lanes);
    padding = run.layout_padding(arena, call);
    run.masks.layout(arena, call.shape);
  };
  if (only_size) return layout_bytes(layout);
  const auto layout_workers = [&](Arena& arena) { run.memory.layout(arena, run.workers); };
  const auto passes = [&] {
    std::vector<Phase>& phases = run.phases;
    run.masks.add_phases(phases, run.set);
    for (const Factor<T>* f : {&to_q, &to_k, &to_v, &to_out}) f->add_copy(phases);
    join_phases(phases, 0);

    const Rows<const T> x_q(call.query), x_k(call.key), x_v(call.value);
    const ProjectionTarget<T> q{to_q, tiles.q, false}, k{to_k, tiles.k, true},
        v{to_v, tiles.v, true};
    const size_t first = phases.size();
    if (run.one_input(call)) {
      run.projection.add_in(phases, x_q, Tokens::Queries, {q, k, v});
    } else {
      run.projection.add_in(phases, x_q, Tokens::Queries, {q});
      if (same(call.key, call.value)) {
        run.projection.add_in(phases, x_k, Tokens::Keys, {k, v});
      } else {
        run.projection.add_in(phases, x_k, Tokens::Keys, {k});
        run.projection.add_in(phases, x_v, Tokens::Keys, {v});
      }
    }
    const bool fused = run.by_sequence();
    if (!fused) join_phases(phases, first);
    run.projection.add_extra_rows(phases, p.bias_k, p.bias_v, tiles.k, tiles.v);
    run.attention.add_forward(phases, tiles);
    const size_t last = phases.size();
    if (out)
      run.projection.add_out(phases, {{to_out, tiles.out}}, Tokens::Queries, Rows<T>(out), false);
    if (weights.heads) run.attention.add_weights(phases, tiles, weights);
    fused ? (void)fuse_phases(phases, first) : join_phases(phases, last);
  };
  execute(run, layout, layout_workers, passes, [&] { run.set_padding(call, padding); });
  return 0;
}

template <class T>
size_t backward(const LayerCall& call, const void* cache, const View& d_out,
                const WeightsView& d_weights, const LayerGradients& d, bool only_size) {
  Run<T> run(call);
  const Parameters &p = call.parameters, &dp = d.parameters;
  const Plan& plan = run.plan;
  const int64_t D = plan.heads * plan.head_dim, Dv = plan.heads * plan.value_dim;
  Arena kept(const_cast<void*>(cache));
  const AttentionTiles<T> tiles = layout_cache<T>(kept, plan);
  GradientTiles<T> g;
  // Backward reads weights the other way round: features in rows, but for the output's.
  Factor<T> from_q = Factor<T>::features(p.query, View{}),
            from_k = Factor<T>::features(p.key, View{}),
            from_v = Factor<T>::features(p.value, View{}),
            from_out = Factor<T>::heads({p.out.weight, View{}});
  T* padding = nullptr;
  const auto layout = [&](Arena& arena) {
    g.d_out = arena.take<T>(plan.query_lanes * Dv);
    g.delta = arena.take<T>(plan.query_lanes * plan.heads);
    g.d_q = arena.take<T>(plan.query_lanes * D);
    g.d_k = arena.take<T>(plan.key_lanes * D);
    g.d_v = arena.take<T>(plan.key_lanes * Dv);
    for (Factor<T>* f : {&from_q, &from_out}) f->layout(arena, plan.query_lanes);
    for (Factor<T>* f : {&from_k, &from_v}) f->layout(arena, plan.key_lanes);
    padding = run.layout_padding(arena, call);
    run.masks.layout(arena, call.shape);
  };
  if (only_size) return layout_bytes(layout);
  const auto layout_workers = [&](Arena& arena) {
    run.attention.layout_backward(arena, run.workers);
    run.memory.layout(arena, run.workers);
  };
  const auto passes = [&] {
    std::vector<Phase>& phases = run.phases;
    run.masks.add_phases(phases, run.set);
    const Rows<const T> q(call.query), k(call.key), v(call.value), d_y(d_out);

    for (const Factor<T>* f : {&from_q, &from_k, &from_v, &from_out}) f->add_copy(phases);
    join_phases(phases, 0);
    const bool fused = run.by_sequence();
    size_t first = phases.size();
    run.projection.add_out_backward(phases, from_out, d_y, tiles.out, g.d_out, g.delta);
    run.attention.add_backward(phases, tiles, g, d_weights, run.workers);
    if (!fused) first = phases.size();

    const auto weight_gradients = [&] {
      Projection<T>& to = run.projection;
      to.add_weight_gradient(phases, tiles.out, Tokens::Queries, plan.value_dim, d_y, dp.out.weight,
                             dp.out.bias, true);
      to.add_weight_gradient(phases, g.d_q, Tokens::Queries, plan.head_dim, q, dp.query.weight,
                             dp.query.bias, false);
      to.add_weight_gradient(phases, g.d_k, Tokens::Keys, plan.head_dim, k, dp.key.weight,
                             dp.key.bias, false);
      to.add_weight_gradient(phases, g.d_v, Tokens::Keys, plan.value_dim, v, dp.value.weight,
                             dp.value.bias, false);
      to.add_bias_row_gradient(phases, g.d_k, g.d_v, dp.bias_k, dp.bias_v);
    };
    const auto input_gradients = [&] {
      const ProjectionSource<T> d_q{from_q, g.d_q}, d_k{from_k, g.d_k}, d_v{from_v, g.d_v};
      const bool k_follows = d.key && d.query && same(d.key, d.query);
      const bool v_follows =
          d.value && ((d.query && same(d.value, d.query)) || (d.key && same(d.value, d.key)));
      const auto add = [&](std::vector<ProjectionSource<T>> sources, Tokens tokens, const View& to,
                           bool adds) {
        run.projection.add_out(phases, std::move(sources), tokens, Rows<T>(to), adds);
      };
      if (run.one_input(call) && k_follows && v_follows)
        return add({d_q, d_k, d_v}, Tokens::Queries, d.query, d.query_adds);
      // What goes to an array that something went to before waits for that.
      const auto wait = [&] {
        if (!fused) join_phases(phases, first), first = phases.size();
      };
      if (d.query) add({d_q}, Tokens::Queries, d.query, d.query_adds);
      if (k_follows) wait();
      if (d.key) add({d_k}, Tokens::Keys, d.key, d.key_adds || k_follows);
      if (v_follows) wait();
      if (d.value) add({d_v}, Tokens::Keys, d.value, d.value_adds || v_follows);
    };
    if (fused) {
      input_gradients();
      fuse_phases(phases, first);
      first = phases.size();
      weight_gradients();
    } else {
      weight_gradients();
      input_gradients();
    }
    join_phases(phases, first);

    if (d.attn_mask) run.attention.add_mask_gradient(phases, tiles, g, d_weights, d.attn_mask);
    if (d.key_padding) {
      View m = d.key_padding;
      m.rank = 4;
      m.size[3] = m.size[1], m.stride[3] = m.stride[1];
      m.size[1] = m.size[2] = 1, m.stride[1] = m.stride[2] = 0;
      run.attention.add_mask_gradient(phases, tiles, g, d_weights, m);
    }
  };
  execute(run, layout, layout_workers, passes, [&] { run.set_padding(call, padding); });
  return 0;
}

}  // namespace

size_t cache_bytes(const LayerCall& call) {
  Arena arena;
  const Plan plan = plan_of(call);
  call.dtype == DType::Float32 ? (void)layout_cache<float>(arena, plan)
                               : (void)layout_cache<double>(arena, plan);
  return arena.used();
}

void layer_forward(const LayerCall& call, const View& out, const WeightsView& weights,
                   void* cache) {
  call.dtype == DType::Float32 ? forward<float>(call, out, weights, cache, false)
                               : forward<double>(call, out, weights, cache, false);
}

size_t forward_bytes(const LayerCall& call, bool cached) {
  char somewhere = 0;
  void* const cache = cached ? &somewhere : nullptr;  // not written to
  return call.dtype == DType::Float32 ? forward<float>(call, {}, {}, cache, true)
                                      : forward<double>(call, {}, {}, cache, true);
}

void layer_backward(const LayerCall& call, const void* cache, const View& d_out,
                    const WeightsView& d_weights, const LayerGradients& gradients) {
  call.dtype == DType::Float32 ? backward<float>(call, cache, d_out, d_weights, gradients, false)
                               : backward<double>(call, cache, d_out, d_weights, gradients, false);
}

size_t backward_bytes(const LayerCall& call) {
  return call.dtype == DType::Float32 ? backward<float>(call, nullptr, {}, {}, {}, true)
                                      : backward<double>(call, nullptr, {}, {}, {}, true);
}

}  // namespace multihead
