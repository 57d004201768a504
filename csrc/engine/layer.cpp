#include "layer.h"

#include <cmath>

#include "cpu.h"
#include "run.h"

namespace multihead {
namespace {

bool same(const View& a, const View& b) {
  if (a.data != b.data || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i)
    if (a.size[i] != b.size[i] || a.stride[i] != b.stride[i]) return false;
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
      : Call<T>(plan_of(call)),
        masks(plan, k, call.attn_mask, true, call.causal, call.dropout, Offsets{}),
        attention(plan, k, masks, 1.0 / std::sqrt(double(plan.head_dim)), memory),
        projection(plan, k, memory, workers) {}

  // The padding's additive values; null where it has none.
  T* layout_padding(Arena& arena, const LayerCall& call) const {
    return padding_adds(call.shape) ? arena.take<T>(plan.key_lanes) : nullptr;
  }
  void set_padding(const LayerCall& call, T* values) {
    if (values && padding_bias(plan, call.shape, values)) masks.set_padding(values);
  }
};

template <class T>
void forward(const LayerCall& call, const View& out, const WeightsView& weights, void* cache) {
  Run<T> run(call);
  const Parameters& p = call.parameters;
  AttentionTiles<T> tiles;
  T* padding = nullptr;
  // Runs twice: to learn the size of the memory, and to take it.
  const auto layout = [&](Arena& arena) {
    Arena kept(cache);
    tiles = layout_cache<T>(cache ? kept : arena, run.plan);
    padding = run.layout_padding(arena, call);
    run.masks.layout(arena, call.shape);
    run.memory.layout(arena, run.workers);
  };
  const auto passes = [&] {
    std::vector<Phase>& phases = run.phases;
    run.masks.add_phases(phases, run.set);

    const Rows<const T> q(call.query), k(call.key), v(call.value);
    const ProjectionTarget<T> to_q{p.query, tiles.q, false}, to_k{p.key, tiles.k, true},
        to_v{p.value, tiles.v, true};
    const bool padded = bool(call.shape.key_padding);
    size_t first = phases.size();
    if (same(call.key, call.value)) {
      if (same(call.query, call.key) && !padded && run.plan.extra() == 0) {
        run.projection.add_in(phases, q, Tokens::Queries, {to_q, to_k, to_v});
      } else {
        run.projection.add_in(phases, q, Tokens::Queries, {to_q});
        run.projection.add_in(phases, k, Tokens::Keys, {to_k, to_v});
      }
    } else {
      run.projection.add_in(phases, q, Tokens::Queries, {to_q});
      run.projection.add_in(phases, k, Tokens::Keys, {to_k});
      run.projection.add_in(phases, v, Tokens::Keys, {to_v});
    }
    join_phases(phases, first);
    run.projection.add_extra_rows(phases, p.bias_k, p.bias_v, tiles.k, tiles.v);

    run.attention.add_forward(phases, tiles);
    first = phases.size();
    run.projection.add_out(phases, p.out, p.out.bias, tiles.out, Rows<T>(out));
    if (weights.heads) run.attention.add_weights(phases, tiles, weights);
    join_phases(phases, first);
  };
  execute(run.phases, run.workers, layout, passes, [&] { run.set_padding(call, padding); });
}

template <class T>
void backward(const LayerCall& call, const void* cache, const View& d_out,
              const WeightsView& d_weights, const LayerGradients& d) {
  Run<T> run(call);
  const Parameters &p = call.parameters, &dp = d.parameters;
  const Plan& plan = run.plan;
  const int64_t D = plan.heads * plan.head_dim, Dv = plan.heads * plan.value_dim;
  Arena kept(const_cast<void*>(cache));
  const AttentionTiles<T> tiles = layout_cache<T>(kept, plan);
  GradientTiles<T> g;
  HeadWeights turned[4];  // of query, key, value and the output
  T* padding = nullptr;
  const auto layout = [&](Arena& arena) {
    g.d_out = arena.take<T>(plan.query_lanes * Dv);
    g.delta = arena.take<T>(plan.query_lanes * plan.heads);
    g.d_q = arena.take<T>(plan.query_lanes * D);
    g.d_k = arena.take<T>(plan.key_lanes * D);
    g.d_v = arena.take<T>(plan.key_lanes * Dv);
    const HeadWeights* weights[] = {&p.query, &p.key, &p.value, &p.out};
    for (int i = 0; i < 4; ++i) turned[i] = run.projection.layout_turned(arena, *weights[i]);
    padding = run.layout_padding(arena, call);
    run.masks.layout(arena, call.shape);
    run.attention.layout_backward(arena, run.workers);
    run.memory.layout(arena, run.workers);
  };
  const auto passes = [&] {
    std::vector<Phase>& phases = run.phases;
    run.masks.add_phases(phases, run.set);
    const Rows<const T> q(call.query), k(call.key), v(call.value), d_y(d_out);

    const HeadWeights* weights[] = {&p.query, &p.key, &p.value, &p.out};
    for (int i = 0; i < 4; ++i) run.projection.add_turn(phases, *weights[i], turned[i]);
    join_phases(phases, 0);
    run.projection.add_out_backward(phases, turned[3], d_y, tiles.out, g.d_out, g.delta);
    run.attention.add_backward(phases, tiles, g, d_weights);

    size_t first = phases.size();
    run.projection.add_weight_gradient(phases, tiles.out, Tokens::Queries, plan.value_dim, d_y,
                                       dp.out.weight, dp.out.bias, true);
    run.projection.add_weight_gradient(phases, g.d_q, Tokens::Queries, plan.head_dim, q,
                                       dp.query.weight, dp.query.bias, false);
    run.projection.add_weight_gradient(phases, g.d_k, Tokens::Keys, plan.head_dim, k, dp.key.weight,
                                       dp.key.bias, false);
    run.projection.add_weight_gradient(phases, g.d_v, Tokens::Keys, plan.value_dim, v,
                                       dp.value.weight, dp.value.bias, false);
    run.projection.add_bias_row_gradient(phases, g.d_k, g.d_v, dp.bias_k, dp.bias_v);
    // What goes to an array that something went to before waits for that.
    const bool k_adds = d.key && d.query && same(d.key, d.query);
    const bool v_adds =
        d.value && ((d.query && same(d.value, d.query)) || (d.key && same(d.value, d.key)));
    if (d.query)
      run.projection.add_in_backward(phases, turned[0], g.d_q, Tokens::Queries, Rows<T>(d.query),
                                     false);
    if (k_adds) join_phases(phases, first), first = phases.size();
    if (d.key)
      run.projection.add_in_backward(phases, turned[1], g.d_k, Tokens::Keys, Rows<T>(d.key),
                                     k_adds);
    if (v_adds) join_phases(phases, first), first = phases.size();
    if (d.value)
      run.projection.add_in_backward(phases, turned[2], g.d_v, Tokens::Keys, Rows<T>(d.value),
                                     v_adds);
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
  execute(run.phases, run.workers, layout, passes, [&] { run.set_padding(call, padding); });
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
  call.dtype == DType::Float32 ? forward<float>(call, out, weights, cache)
                               : forward<double>(call, out, weights, cache);
}

void layer_backward(const LayerCall& call, const void* cache, const View& d_out,
                    const WeightsView& d_weights, const LayerGradients& gradients) {
  call.dtype == DType::Float32 ? backward<float>(call, cache, d_out, d_weights, gradients)
                               : backward<double>(call, cache, d_out, d_weights, gradients);
}

}  // namespace multihead
