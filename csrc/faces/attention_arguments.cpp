// Attention alone, of dense and packed sequences: what the engine takes, from what a face is told.
#include "checks.h"

namespace multihead::faces {
namespace {

void check_positions(const AttentionPositions& positions, const BatchShape& shape) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    if (positions.query && (positions.query[b] < -kFar || positions.query[b] > kFar))
      wrong("query_positions", "from -2**40 to 2**40", std::to_string(positions.query[b]));
    if (!positions.key_lengths) continue;
    const int64_t n = positions.key_lengths[b], *const k = shape.key_offsets;
    const int64_t most = k ? k[b + 1] - k[b] : shape.keys;
    if (n < 0 || n > most)
      wrong("key_lengths", "from 0 to " + std::to_string(most), std::to_string(n));
  }
}

// Tokens first, (..., total, H) and whatever follows, as (..., N, H, L): the sequences of a ragged
// batch, which the offsets tell apart, of L tokens each for all that the axes say.
View by_sequence(View v, int at, const BatchShape& shape, int64_t tokens) {
  if (!v) return v;
  swap_axes(v, at, at + 1);
  insert_axis(v, at);
  v.size[at] = shape.batch;
  v.size[at + 2] = tokens;
  return v;
}

// (N, H, L, D), or of a ragged batch what lies as (total, H, D).
View like(const AttentionCall& call, Tokens tokens, const char* name, const View& v,
          int64_t width) {
  const AttentionSpec& spec = call.attention;
  const BatchShape& s = spec.shape;
  const bool queries = tokens == Tokens::Queries;
  const int64_t heads = queries ? spec.heads.count : spec.heads.key_count;
  const int64_t longest = queries ? s.queries : s.keys;
  const int64_t* const offsets = queries ? s.query_offsets : s.key_offsets;
  if (!offsets) {
    check_floats_of(name, v, spec.dtype, {s.batch, heads, longest, width});
    return v;
  }
  check_floats_of(name, v, spec.dtype, {offsets[s.batch], heads, width});
  return by_sequence(v, 0, s, longest);
}

}  // namespace

AttentionCall attention_call(const AttentionArguments& a) {
  const AttentionTensors& t = a.tensors;
  const bool ragged = a.offsets.query != nullptr;
  const int rank = ragged ? 3 : 4;
  check_rank("query", t.query, rank, rank);
  check_rank("key", t.key, rank, rank);
  check_rank("value", t.value, rank, rank);
  AttentionCall call;
  AttentionSpec& spec = call.attention;
  spec.dtype = a.options.dtype;
  const int64_t count = t.query.size[1], heads = t.key.size[1];
  if (heads == 0 ? count != 0 : count % heads != 0)
    wrong("key", "a number of heads that divides " + std::to_string(count), std::to_string(heads));
  spec.heads = {.count = count,
                .key_count = heads,
                .dim = t.query.size[rank - 1],
                .value_dim = t.value.size[rank - 1]};
  if (ragged) {
    spec.shape = ragged_shape(a.offsets, t.query.size[0], t.key.size[0]);
  } else {
    spec.shape.batch = t.query.size[0];
    spec.shape.queries = t.query.size[2];
    spec.shape.keys = t.key.size[2];
  }
  check_tokens(spec.shape);
  call.q = like(call, Tokens::Queries, "query", t.query, spec.heads.dim);
  call.k = like(call, Tokens::Keys, "key", t.key, spec.heads.dim);
  call.v = like(call, Tokens::Keys, "value", t.value, spec.heads.value_dim);
  spec.rules.scale = a.options.scale;
  spec.rules.causal = a.options.causal;
  spec.rules.true_hides = a.options.true_hides;
  spec.rules.dropout = a.options.dropout;
  spec.rules.offsets = a.options.offsets;
  set_rules(spec.rules, a.options);
  spec.rules.mask = mask_of(t.mask, spec);
  spec.rules.alibi_slopes = slopes_of(t.alibi_slopes, spec);
  spec.rules.sinks = t.sinks;
  if (t.sinks) check_floats_of("sinks", t.sinks, spec.dtype, {count});
  check_positions(a.positions, spec.shape);
  spec.shape.query_positions = a.positions.query;
  spec.shape.key_lengths = a.positions.key_lengths;
  return call;
}

AttentionResults attention_results(const AttentionCall& call, const AttentionResults& results) {
  const AttentionSpec& spec = call.attention;
  const BatchShape& s = spec.shape;
  const int64_t N = s.batch, H = spec.heads.count, L = s.queries;
  AttentionResults r = results;
  r.out = like(call, Tokens::Queries, "out", r.out, spec.heads.value_dim);
  check_type("stats", r.stats, computed_in(spec.dtype));
  if (s.query_offsets) {
    if (r.stats) check_size("stats", r.stats, {2, s.query_offsets[N], H});
    r.stats = by_sequence(r.stats, 1, s, L);
    if (r.weights) wrong("weights", "none of a ragged batch", "an array");
    return r;
  }
  if (r.stats) check_size("stats", r.stats, {2, N, H, L});
  if (r.weights) check_floats_of("weights", r.weights, spec.dtype, {N, H, L, s.keys});
  return r;
}

View attention_delta(const AttentionCall& call, const View& delta) {
  const AttentionSpec& spec = call.attention;
  const BatchShape& s = spec.shape;
  check_type("delta", delta, computed_in(spec.dtype));
  if (!s.query_offsets) {
    check_size("delta", delta, {s.batch, spec.heads.count, s.queries});
    return delta;
  }
  check_size("delta", delta, {s.query_offsets[s.batch], spec.heads.count});
  return by_sequence(delta, 0, s, s.queries);
}

RowDot row_dot(const RowDot& arguments) {
  RowDot r = arguments;
  check_rank("d_out", r.a, 3, 4);
  check_rank("out", r.b, r.a.rank, r.a.rank);
  if (r.a.rank == 3) {  // one sequence of all tokens
    BatchShape one;
    one.batch = 1;
    const int64_t total = r.a.size[0];
    check_rank("delta", r.result, 2, 2);
    r = {by_sequence(r.a, 0, one, total), by_sequence(r.b, 0, one, total),
         by_sequence(r.result, 0, one, total)};
    check_size("out", arguments.b, {total, r.a.size[1], r.a.size[3]});
    check_size("delta", arguments.result, {total, r.a.size[1]});
  }
  const DType of_out = r.b.dtype == computed_in(r.a.dtype) ? r.b.dtype : r.a.dtype;
  check_type("out", r.b, of_out);
  check_size("out", r.b, {r.a.size[0], r.a.size[1], r.a.size[2], r.a.size[3]});
  check_type("delta", r.result, computed_in(r.a.dtype));
  check_size("delta", r.result, {r.a.size[0], r.a.size[1], r.a.size[2]});
  return r;
}

AttentionGradients attention_gradients(const AttentionCall& call,
                                       const AttentionTensors& gradients) {
  const AttentionSpec& spec = call.attention;
  const Heads& heads = spec.heads;
  check_type("d_mask", gradients.mask, computed_in(spec.dtype));
  if (gradients.sinks) {
    check_type("d_sinks", gradients.sinks, computed_in(spec.dtype));
    check_size("d_sinks", gradients.sinks, {heads.count});
    if (!spec.rules.sinks) wrong("d_sinks", "none, as there are no sinks", "an array");
  }
  if (gradients.alibi_slopes) wrong("d_alibi_slopes", "none", "an array");
  const AttentionTensors& g = gradients;
  return {g.query ? like(call, Tokens::Queries, "d_query", g.query, heads.dim) : View{},
          g.key ? like(call, Tokens::Keys, "d_key", g.key, heads.dim) : View{},
          g.value ? like(call, Tokens::Keys, "d_value", g.value, heads.value_dim) : View{},
          own_axes(g.mask, spec), g.sinks};
}

}  // namespace multihead::faces
