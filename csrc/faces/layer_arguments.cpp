// The layer, and its steps over a cache: what the engine takes, from what a face is told.
#include <cmath>
#include <utility>

#include "checks.h"

namespace multihead::faces {
namespace {

// (L, N, E), (N, L, E) or (L, E) as (N, L, E); ragged (total, E) stays.
View batch_first(View v, const LayerArguments& a) {
  if (!v || a.offsets.query) return v;
  if (v.rank == 2)
    insert_axis(v, 0);
  else if (a.options.tokens_first)
    swap_axes(v, 0, 1);
  return v;
}

// Rows of H heads: (H * D, in) as (H, D, in), or (H * D) as (H, D).
View by_head(View v, int64_t heads) {
  if (!v) return v;
  insert_axis(v, 0);
  v.stride[0] = v.stride[1] * (v.size[1] / heads);
  v.size[1] /= heads;
  v.size[0] = heads;
  return v;
}

// The part of the first axis that is of query, key or value.
View part(View v, int i, const Heads& heads) {
  if (!v) return v;
  const int64_t q = heads.count * heads.dim, k = heads.key_count * heads.dim;
  v.data = v.address((i == 0 ? 0 : q + (i - 1) * k) * v.stride[0]);
  v.size[0] = i == 0 ? q : k;
  return v;
}

View without_ones(View v) {  // (1, 1, E) as (E)
  if (!v) return v;
  v.size[0] = v.size[v.rank - 1];
  v.stride[0] = v.stride[v.rank - 1];
  v.rank = 1;
  return v;
}

Parameters parameters_of(const LayerTensors& t, const Heads& heads) {
  const bool packed = bool(t.in_weight);
  const auto projection = [&](const View& separate, int i) {
    const int64_t n = i == 0 ? heads.count : heads.key_count;
    return HeadWeights{by_head(packed ? part(t.in_weight, i, heads) : separate, n),
                       by_head(part(t.in_bias, i, heads), n)};
  };
  Parameters p;
  p.query = projection(t.q_weight, 0);
  p.key = projection(t.k_weight, 1);
  p.value = projection(t.v_weight, 2);
  p.bias_k = by_head(without_ones(t.bias_k), heads.key_count);
  p.bias_v = by_head(without_ones(t.bias_v), heads.key_count);
  View out = t.out_weight;  // (E, H * Dv) as (H, Dv, E)
  if (out) swap_axes(out, 0, 1);
  p.out = {by_head(out, heads.count), t.out_bias};
  p.sinks = t.sinks;
  return p;
}

// What the parameters must be like, or their gradients where there are any.
struct Widths {
  int64_t embed, kdim, vdim;
  Heads heads;

  int64_t queries() const { return heads.count * heads.dim; }
  int64_t keys() const { return heads.key_count * heads.dim; }
  int64_t all() const { return queries() + 2 * keys(); }
};

void check_parameters(const LayerTensors& t, const Widths& w, DType type) {
  const auto check = [&](const char* name, const View& v, std::initializer_list<int64_t> size) {
    if (v) check_size(name, v, size);
    check_floats(name, v, type);
  };
  check("in_weight", t.in_weight, {w.all(), w.embed});
  check("q_weight", t.q_weight, {w.queries(), w.embed});
  check("k_weight", t.k_weight, {w.keys(), w.kdim});
  check("v_weight", t.v_weight, {w.keys(), w.vdim});
  check("in_bias", t.in_bias, {w.all()});
  const auto check_row = [&](const char* name, const View& v) {
    check(name, without_ones(v), {w.keys()});
    if (v && v.rank == 3 && v.size[0] * v.size[1] != 1)
      wrong(name, "(1, 1, " + std::to_string(w.keys()) + ")", text(v.size, v.rank));
  };
  check_row("bias_k", t.bias_k);
  check_row("bias_v", t.bias_v);
  check("out_weight", t.out_weight, {w.embed, w.queries()});
  check("out_bias", t.out_bias, {w.embed});
  check("sinks", t.sinks, {w.heads.count});
}

Heads heads_of(const LayerOptions& o, int64_t embed) {
  const int64_t H = o.num_heads, Hk = o.key_heads ? o.key_heads : H;
  if (H < 1 || (!o.head_dim && embed % H != 0))
    wrong("num_heads", "a divisor of " + std::to_string(embed), std::to_string(H));
  if (Hk < 1 || H % Hk != 0)
    wrong("num_kv_heads", "a divisor of num_heads = " + std::to_string(H), std::to_string(Hk));
  const int64_t dim = o.head_dim ? o.head_dim : embed / H;
  if (dim < 1 || dim > (int64_t(1) << 40) / H) wrong("head_dim", "1 or more", std::to_string(dim));
  return {.count = H, .key_count = Hk, .dim = dim, .value_dim = dim};
}

// Angles for so many positions.
Rotary rotary_of(const LayerTensors& t, const LayerOptions& o, const AttentionSpec& spec,
                 int64_t furthest) {
  Rotary r;
  if (bool(t.cosine) != bool(t.sine)) wrong("cosine, sine", "both or none", "one");
  if (!t.cosine) return r;
  check_rank("cosine", t.cosine, 2, 2);
  const int64_t pairs = t.cosine.size[0], positions = t.cosine.size[1];
  if (pairs < 1 || 2 * pairs > spec.heads.dim)
    wrong("cosine", "angles for at most " + std::to_string(spec.heads.dim / 2) + " pairs",
          text(t.cosine.size, t.cosine.rank));
  check_shape("cosine", t.cosine, computed_in(spec.dtype), {pairs, positions});
  check_shape("sine", t.sine, computed_in(spec.dtype), {pairs, positions});
  if (furthest > positions)
    wrong("cosine", "angles of " + std::to_string(furthest) + " positions",
          text(t.cosine.size, t.cosine.rank));
  return {t.cosine, t.sine, o.interleaved};
}

// Of a dense batch from its tensors, of a ragged one from its offsets.
BatchShape batch_shape(const LayerArguments& a, const LayerCall& call) {
  BatchShape s;
  const View &query = call.query, &key = call.key;
  if (!a.offsets.query) {
    s.batch = query.size[0];
    s.queries = query.size[1];
    s.keys = key.size[1];
    if (key.size[0] != s.batch)
      wrong("key", std::to_string(s.batch) + " sequences", text(key.size, key.rank));
  } else {
    return ragged_shape(a.offsets, query.size[0], key.size[0]);
  }
  return s;
}

View padding_of(View v, const BatchShape& s, DType type) {
  if (!v) return v;
  if (v.rank == 1) insert_axis(v, 0);
  check_size("padding", v, {s.batch, s.keys});
  if (v.dtype != DType::Bool) check_floats("padding", v, type);
  return v;
}

// Without a value it is the key, without a key both are the query; `like` says which there are.
void share_inputs(LayerTensors& t, const LayerTensors& like) {
  if (!like.key) t.key = t.query;
  if (!like.value) t.value = t.key;
}

}  // namespace

LayerCall layer_call(const LayerArguments& a) {
  LayerTensors t = a.tensors;
  share_inputs(t, a.tensors);
  const int ragged = a.offsets.query ? 1 : 0;
  check_rank("query", t.query, 2, 3 - ragged);
  check_rank("key", t.key, t.query.rank, t.query.rank);
  check_rank("value", t.value, t.query.rank, t.query.rank);
  LayerCall call;
  call.query = batch_first(t.query, a);
  call.key = batch_first(t.key, a);
  call.value = batch_first(t.value, a);
  const auto width = [](const View& v) { return v.size[v.rank - 1]; };
  AttentionSpec& spec = call.attention;
  spec.dtype = a.options.dtype;
  spec.heads = heads_of(a.options, width(t.query));
  const Widths widths{width(t.query), width(t.key), width(t.value), spec.heads};
  check_floats("query", t.query, spec.dtype);
  check_floats("key", t.key, spec.dtype);
  check_floats("value", t.value, spec.dtype);
  for (int i = 0; i + 1 < call.key.rank; ++i)
    if (call.key.size[i] != call.value.size[i])
      wrong("value", "the tokens of key " + text(t.key.size, t.key.rank),
            text(t.value.size, t.value.rank));
  const bool packed = bool(t.in_weight);
  if (packed && (widths.kdim != widths.embed || widths.vdim != widths.embed))
    wrong("in_weight", "separate weights for inputs of other widths", "one for all");
  if (!packed && !(t.q_weight && t.k_weight && t.v_weight))
    wrong("q_weight, k_weight, v_weight", "all three, or in_weight", "fewer");
  if (!t.out_weight) wrong("out_weight", "a matrix", "none");
  if (bool(t.bias_k) != bool(t.bias_v)) wrong("bias_k, bias_v", "both or none", "one");
  check_parameters(t, widths, spec.dtype);
  call.parameters = parameters_of(t, spec.heads);
  spec.shape = batch_shape(a, call);
  check_sizes(spec);
  spec.shape.key_padding = padding_of(t.padding, spec.shape, spec.dtype);
  spec.bias_key = bool(t.bias_k);
  spec.zero_row = a.options.zero_row;
  spec.rules.scale = 1.0 / std::sqrt(double(spec.heads.dim));
  spec.rules.causal = a.options.causal;
  spec.rules.dropout = a.options.dropout;
  spec.rules.offsets = a.options.offsets;
  set_rules(spec.rules, a.options);
  spec.rules.mask = mask_of(t.mask, spec);
  spec.rules.alibi_slopes = slopes_of(t.alibi_slopes, spec);
  spec.rules.sinks = t.sinks;
  spec.rotary = rotary_of(t, a.options, spec, larger(spec.shape.queries, spec.shape.keys));
  return call;
}

CachedCall cached_call(const LayerArguments& arguments, const CachedKeys& cache,
                       std::vector<int64_t>& lengths) {
  LayerArguments a = arguments;
  if (a.offsets.query) wrong("query", "a dense batch beside a cache", "a ragged one");
  const LayerTensors& t = arguments.tensors;
  if (t.bias_k || a.options.zero_row)
    wrong("kv_cache", "a layer without bias_k and the zero row", "one with them");
  if (t.padding) wrong("padding", "none beside a cache", "an array");
  a.tensors.mask = {};  // has as many columns as there will be keys
  a.tensors.cosine = a.tensors.sine = {};
  CachedCall call{layer_call(a), cache.k, cache.v, cache.positions};
  AttentionSpec& spec = call.layer.attention;
  BatchShape& s = spec.shape;
  const int64_t fresh = s.keys, N = s.batch, Hk = spec.heads.key_count;
  if (fresh != s.queries)
    wrong("key", "as many new tokens as queries, " + std::to_string(s.queries),
          std::to_string(fresh));
  if (cache.k.rank != 4 || cache.v.rank != 4) wrong("kv_cache", "four axes", "others");
  const int64_t room = cache.k.size[2];
  check_floats_of("keys of kv_cache", cache.k, spec.dtype, {N, Hk, room, spec.heads.dim});
  check_floats_of("values of kv_cache", cache.v, spec.dtype, {N, Hk, room, spec.heads.value_dim});
  lengths.assign(size_t(N), 0);
  s.keys = 0;
  int64_t furthest = 0;
  for (int64_t b = 0; b < N; ++b) {
    if (cache.rows[b] < 0 || cache.rows[b] > room - fresh)
      wrong("kv_cache", "room for " + std::to_string(fresh) + " more rows",
            std::to_string(cache.rows[b]) + " of " + std::to_string(room) + " in use");
    if (cache.positions[b] < 0 || cache.positions[b] > kFar)
      wrong("positions of kv_cache", "from 0 to 2**40", std::to_string(cache.positions[b]));
    lengths[size_t(b)] = cache.rows[b] + fresh;
    s.keys = larger(s.keys, lengths[size_t(b)]);
    furthest = larger(furthest, cache.positions[b] + fresh);
  }
  check_sizes(spec);
  s.query_positions = cache.rows;
  s.key_lengths = lengths.data();
  spec.rules.mask = mask_of(t.mask, spec);
  spec.rotary = rotary_of(t, a.options, spec, furthest);
  return call;
}

View layer_out(const LayerArguments& a, const LayerCall& call, const View& out) {
  const View v = batch_first(out, a), &q = call.query;
  if (q.rank == 3)
    check_floats_of("out", v, call.attention.dtype, {q.size[0], q.size[1], q.size[2]});
  else
    check_floats_of("out", v, call.attention.dtype, {q.size[0], q.size[1]});
  return v;
}

WeightsView layer_weights(const LayerArguments& a, const LayerCall& call, const View& weights) {
  WeightsView w;
  if (!weights) return w;
  if (a.options.weights == Weights::None) wrong("weights", "none", "an array");
  const AttentionSpec& spec = call.attention;
  const BatchShape& s = spec.shape;
  const bool average = a.options.weights == Weights::Average;
  const int64_t extra = int64_t(spec.bias_key) + int64_t(spec.zero_row);
  w.view = weights;
  w.heads = average ? 1 : spec.heads.count;
  if (a.offsets.query) {
    int64_t elements = 0;
    for (int64_t b = 0; b < s.batch; ++b)
      elements += (s.query_offsets[b + 1] - s.query_offsets[b]) *
                  (s.key_offsets[b + 1] - s.key_offsets[b] + extra);
    check_floats_of("weights", w.view, spec.dtype, {elements * w.heads});
    if (w.view.stride[0] != 1 && w.view.size[0] > 1)
      wrong("weights", "memory in one piece", "gaps");
    return w;
  }
  check_rank("weights", weights, 2, 4);
  if (average && w.view.rank < 4) insert_axis(w.view, w.view.rank - 2);
  if (w.view.rank < 4) insert_axis(w.view, 0);
  check_floats_of("weights", w.view, spec.dtype, {s.batch, w.heads, s.queries, s.keys + extra});
  return w;
}

LayerGradients layer_gradients(const LayerArguments& a, const LayerCall& call,
                               const LayerTensors& gradients) {
  LayerTensors t = gradients;
  share_inputs(t, a.tensors);
  const AttentionSpec& spec = call.attention;
  const auto like = [&](const char* name, const View& given, const View& input) {
    const View v = batch_first(given, a);
    if (!v) return v;
    if (input.rank == 3)
      check_size(name, v, {input.size[0], input.size[1], input.size[2]});
    else
      check_size(name, v, {input.size[0], input.size[1]});
    check_floats(name, v, spec.dtype);
    return v;
  };
  LayerGradients g;
  g.query = like("d_query", t.query, call.query);
  g.key = like("d_key", t.key, call.key);
  g.value = like("d_value", t.value, call.value);
  const auto width = [](const View& v) { return v.size[v.rank - 1]; };
  check_parameters(t, {width(call.query), width(call.key), width(call.value), spec.heads},
                   spec.dtype);
  // A gradient without a parameter has no place to come from.
  const LayerTensors& of = a.tensors;
  for (const auto& [name, view] : kLayerTensors)
    if (t.*view && !(of.*view) && view != &LayerTensors::key && view != &LayerTensors::value)
      wrong(std::string("gradient of ") + name, "none, as there is none of it", "an array");
  for (const View& v : {t.alibi_slopes, t.cosine, t.sine})
    if (v) wrong("gradient of alibi_slopes, cosine or sine", "none", "an array");
  g.parameters = parameters_of(t, spec.heads);
  g.key_padding = padding_of(t.padding, spec.shape, spec.dtype);
  check_type("d_padding", g.key_padding, computed_in(spec.dtype));
  check_type("d_mask", t.mask, computed_in(spec.dtype));
  g.mask = own_axes(t.mask, spec);
  return g;
}

}  // namespace multihead::faces
