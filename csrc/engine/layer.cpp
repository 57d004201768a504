#include "layer.h"

#include <algorithm>

namespace multihead {

template <class E>
Layer<E>::Layer(const LayerCall& call, const KernelSet& set)
    : call_(call),
      run_(call.attention, call.resources, set),
      phases_(run_.phases),
      projection_(run_.plan, run_.kernels, run_.rotation, run_.memory),
      by_sequence_(takes_sequences()) {
  if (by_sequence_) run_.attention.go_by_sequence();
}

template <class E>
bool Layer<E>::one_input() const {
  return same(call_.query, call_.key) && same(call_.query, call_.value) &&
         !call_.attention.shape.key_padding && run_.plan.extra_keys() == 0;
}

// There are enough sequences, and what they leave between passes stays in L2.
template <class E>
bool Layer<E>::takes_sequences() const {
  constexpr int64_t kSmall = 65536;  // elements of an array of one sequence
  const Plan& plan = run_.plan;
  int64_t longest = 0;
  for (const Sequence& s : plan.sequences) longest = larger(longest, larger(s.queries, s.keys));
  return int64_t(plan.sequences.size()) >= 4 * run_.memory.workers() &&
         longest * plan.heads.count * larger(plan.heads.dim, plan.heads.value_dim) <= kSmall;
}

// Memory

// Forward reads the weights of a head row by row, features along k.
template <class E>
void Layer<E>::weights_for_forward() {
  using W = PackedWeights<E>;
  const Parameters& p = call_.parameters;
  const Kernels<E>& k = run_.kernels;
  weights_ = {W::by_head(p.query, k), W::by_head(p.key, k), W::by_head(p.value, k),
              W::by_feature(p.out, p.out.bias, k)};
}

// Backward reads them the other way round, and without biases.
template <class E>
void Layer<E>::weights_for_backward() {
  using W = PackedWeights<E>;
  const Parameters& p = call_.parameters;
  const Kernels<E>& k = run_.kernels;
  weights_ = {W::by_feature(p.query, {}, k), W::by_feature(p.key, {}, k),
              W::by_feature(p.value, {}, k), W::by_head({p.out.weight, {}}, k)};
}

template <class E>
void Layer<E>::layout_weights(Arena& arena) {
  for (PackedWeights<E>* w : {&weights_.query, &weights_.out})
    w->layout(arena, run_.plan.query_lanes);
  for (PackedWeights<E>* w : {&weights_.key, &weights_.value})
    w->layout(arena, run_.plan.key_lanes);
}

// What forward leaves for backward.
template <class E>
void Layer<E>::layout_cache(Arena& arena) {
  tiles_.layout_inputs(arena, run_.plan);
  tiles_.layout_results(arena, run_.plan);
}

template <class E>
void Layer<E>::layout_forward(Arena& arena, Arena* kept) {
  layout_cache(kept ? *kept : arena);
  layout_weights(arena);
  run_.masks.layout(arena);
}

template <class E>
void Layer<E>::layout_backward(Arena& arena) {
  gradients_.layout(arena, run_.plan);
  layout_weights(arena);
  run_.masks.layout(arena);
}

template <class E>
size_t Layer<E>::cache_bytes() {
  return run_.layout_bytes([&](Arena& arena) {
    arena.unguarded();
    layout_cache(arena);
  });
}

template <class E>
size_t Layer<E>::forward_bytes(bool cached) {
  weights_for_forward();
  return run_.layout_bytes([&](Arena& arena) {
    Arena kept;
    layout_forward(arena, cached ? &kept : nullptr);
  });
}

template <class E>
size_t Layer<E>::backward_bytes() {
  weights_for_backward();
  return run_.layout_bytes([&](Arena& arena) { layout_backward(arena); });
}

// Forward, and backward through the same passes

template <class E>
void Layer<E>::forward(const View& out, const WeightsView& weights, const CacheMemory& cache) {
  void* const kept_at = cache ? cache(cache_bytes()) : nullptr;
  weights_for_forward();
  const size_t scratch =
      std::max({projection_.scratch(weights_.query.k()), projection_.scratch(weights_.key.k()),
                projection_.scratch(weights_.value.k()), run_.attention.forward_scratch(),
                run_.attention.weights_scratch(weights), projection_.scratch(weights_.out.m())});
  const auto layout = [&](Arena& arena) {
    Arena kept(kept_at);
    kept.unguarded();
    layout_forward(arena, cache ? &kept : nullptr);
  };
  run_.run(
      layout, [](Arena&) {}, scratch,
      [&] {
        read_masks();
        const size_t first = phases_.size();
        project_in();
        attend();
        const size_t last = phases_.size();
        write_weights(weights);
        project_out(out);
        by_sequence_ ? (void)fuse_phases(phases_, first) : join_phases(phases_, last);
      });
}

template <class E>
void Layer<E>::backward(const CacheMemory& cache, const View& d_out, const WeightsView& d_weights,
                        const LayerGradients& d) {
  Arena kept(cache(cache_bytes()));
  kept.unguarded();
  weights_for_backward();
  layout_cache(kept);
  gradients_.forward = tiles_;
  gradients_.d_weights = d_weights;
  size_t scratch =
      std::max({projection_.scratch(weights_.out.k()), run_.attention.backward_scratch(),
                projection_.scratch(weights_.query.m()), projection_.scratch(weights_.key.m()),
                projection_.scratch(weights_.value.m())});
  for (const WeightGradient<E>& g : weight_gradients(d, d_out))
    scratch = std::max(scratch, projection_.scratch(g));
  const auto layout = [&](Arena& arena) { layout_backward(arena); };
  const auto layout_workers = [&](Arena& arena) { run_.attention.layout_backward(arena); };
  run_.run(layout, layout_workers, scratch, [&] {
    read_masks();  // as forward did: scores are made anew
    const size_t first = phases_.size();
    project_out_backward(d_out);
    write_weights_backward();
    attend_backward();
    project_in_backward(d, weight_gradients(d, d_out), first);
    read_masks_backward(d);
  });
}

// 1: the masks become words; weights are packed meanwhile

template <class E>
void Layer<E>::read_masks() {
  run_.masks.add_reading(phases_);
  for (const PackedWeights<E>* w : {&weights_.query, &weights_.key, &weights_.value, &weights_.out})
    w->add_packing(phases_, run_.kernels);
  join_phases(phases_, 0);
}

template <class E>
void Layer<E>::read_masks_backward(const LayerGradients& d) {
  run_.attention.add_mask_gradient(phases_, gradients_, d.mask);
  run_.attention.add_sink_gradient(phases_, gradients_, d.parameters.sinks, true);
  View padding = d.key_padding;  // (N, S) as (N, 1, 1, S)
  if (!padding) return;
  padding.rank = 4;
  padding.size[3] = padding.size[1], padding.stride[3] = padding.stride[1];
  padding.size[1] = padding.size[2] = 1, padding.stride[1] = padding.stride[2] = 0;
  run_.attention.add_mask_gradient(phases_, gradients_, padding);
}

// 2: q, k and v of every head; one reading serves all that come from one input

template <class E>
void Layer<E>::project_in() {
  const ProjectionTarget<E> q{weights_.query, tiles_.q, TileOf::Tokens},
      k{weights_.key, tiles_.k, TileOf::Keys}, v{weights_.value, tiles_.v, TileOf::Values};
  const size_t first = phases_.size();
  if (one_input()) {
    projection_.add_in(phases_, call_.query, Tokens::Queries, {q, k, v});
  } else {
    projection_.add_in(phases_, call_.query, Tokens::Queries, {q});
    if (same(call_.key, call_.value)) {
      projection_.add_in(phases_, call_.key, Tokens::Keys, {k, v});
    } else {
      projection_.add_in(phases_, call_.key, Tokens::Keys, {k});
      projection_.add_in(phases_, call_.value, Tokens::Keys, {v});
    }
  }
  if (!by_sequence_) join_phases(phases_, first);
  projection_.add_extra_rows(phases_, call_.parameters.bias_k, call_.parameters.bias_v, tiles_);
}

// Of the inputs, of all weights, of the rows after the keys. A worker that takes sequences goes on
// to their inputs; the sums over all tokens come after.
template <class E>
void Layer<E>::project_in_backward(const LayerGradients& d, const WeightGradients& of_weights,
                                   size_t first) {
  if (by_sequence_) {
    input_gradients(d, first);
    fuse_phases(phases_, first);
  }
  const size_t rest = phases_.size();
  for (const WeightGradient<E>& g : of_weights) projection_.add_weight_gradient(phases_, g);
  projection_.add_extra_rows_backward(phases_, gradients_, d.parameters.bias_k,
                                      d.parameters.bias_v);
  if (by_sequence_) return join_phases(phases_, rest);
  input_gradients(d, rest);
}

template <class E>
void Layer<E>::input_gradients(const LayerGradients& d, size_t first) {
  const ProjectionSource<E> d_q{weights_.query, gradients_.d_q}, d_k{weights_.key, gradients_.d_k},
      d_v{weights_.value, gradients_.d_v};
  const bool k_follows = d.key && d.query && same(d.key, d.query);
  const bool v_follows =
      d.value && ((d.query && same(d.value, d.query)) || (d.key && same(d.value, d.key)));
  const auto join = [&] {
    if (!by_sequence_) join_phases(phases_, first), first = phases_.size();
  };
  if (one_input() && k_follows && v_follows) {
    projection_.add_out(phases_, {d_q, d_k, d_v}, Tokens::Queries, d.query, d.query_adds);
    return join();
  }
  if (d.query) projection_.add_out(phases_, {d_q}, Tokens::Queries, d.query, d.query_adds);
  if (k_follows) join();
  if (d.key) projection_.add_out(phases_, {d_k}, Tokens::Keys, d.key, d.key_adds || k_follows);
  if (v_follows) join();
  if (d.value)
    projection_.add_out(phases_, {d_v}, Tokens::Keys, d.value, d.value_adds || v_follows);
  join();
}

template <class E>
auto Layer<E>::weight_gradients(const LayerGradients& d, const View& d_out) const
    -> WeightGradients {
  const Heads& heads = run_.plan.heads;
  const auto in = [](const E* tiles, Tokens tokens, int64_t dim, const View& x,
                     const HeadWeights& to) {
    return WeightGradient<E>{tiles, tokens, dim, x, to.weight, to.bias, false};
  };
  const Parameters& p = d.parameters;
  const GradientTiles<E>& g = gradients_;
  return {{tiles_.out, Tokens::Queries, heads.value_dim, d_out, p.out.weight, p.out.bias, true},
          in(g.d_q, Tokens::Queries, heads.dim, call_.query, p.query),
          in(g.d_k, Tokens::Keys, heads.dim, call_.key, p.key),
          in(g.d_v, Tokens::Keys, heads.value_dim, call_.value, p.value)};
}

// 3: attention, block by block of queries

template <class E>
void Layer<E>::attend() {
  run_.attention.add_forward(phases_, tiles_);
}

template <class E>
void Layer<E>::attend_backward() {
  run_.attention.add_backward(phases_, gradients_);
}

// 4: weights, where wanted

template <class E>
void Layer<E>::write_weights(const WeightsView& weights) {
  run_.attention.add_weights(phases_, tiles_, weights);
}

template <class E>
void Layer<E>::write_weights_backward() {
  run_.attention.add_weights_backward(phases_, gradients_);
}

// 5: the heads' outputs become rows

template <class E>
void Layer<E>::project_out(const View& out) {
  if (out) projection_.add_out(phases_, {{weights_.out, tiles_.out}}, Tokens::Queries, out, false);
}

template <class E>
void Layer<E>::project_out_backward(const View& d_out) {
  projection_.add_out_backward(phases_, weights_.out, d_out, gradients_);
}

// f(layer) of the type that the call's kernels compute its dtype in.
template <class F>
static decltype(auto) with_layer(const LayerCall& call, F f) {
  const KernelSet& set = kernels_or_in_use(call.resources.kernels);
  return dispatch(set, call.attention.dtype, [&]<class E>() {
    Layer<E> layer(call, set);
    return f(layer);
  });
}

// f(layer) of a call that runs nothing.
template <class F>
static size_t bytes_of_layer(const LayerCall& call, F f) {
  LayerCall asked = call;
  asked.resources.for_sizes = true;
  return with_layer(asked, f);
}

size_t cache_bytes(const LayerCall& call) {
  return bytes_of_layer(call, [](auto& layer) { return layer.cache_bytes(); });
}

size_t forward_bytes(const LayerCall& call, bool cached) {
  return bytes_of_layer(call, [&](auto& layer) { return layer.forward_bytes(cached); });
}

size_t backward_bytes(const LayerCall& call) {
  return bytes_of_layer(call, [](auto& layer) { return layer.backward_bytes(); });
}

void layer_forward(const LayerCall& call, const View& out, const WeightsView& weights,
                   const CacheMemory& cache) {
  with_layer(call, [&](auto& layer) { layer.forward(out, weights, cache); });
}

void layer_backward(const LayerCall& call, const CacheMemory& cache, const View& d_out,
                    const WeightsView& d_weights, const LayerGradients& gradients) {
  with_layer(call, [&](auto& layer) { layer.backward(cache, d_out, d_weights, gradients); });
}

}  // namespace multihead
