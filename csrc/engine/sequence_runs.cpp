#include "sequence_runs.h"

#include "split_keys.h"

namespace multihead {
namespace {

// So many of the first entries left out.
View without(View v, int64_t first) {
  if (v) v.data = v.address(first * v.stride[0]), v.size[0] -= first;
  return v;
}

}  // namespace

std::vector<SequenceRun> sequence_runs(const AttentionCall& call) {
  const BatchShape& shape = call.attention.shape;
  const int64_t *q = shape.query_offsets, *k = shape.key_offsets;
  if (!q || shape.batch == 0) return {{0, shape.batch, shape.queries, shape.keys}};
  std::vector<SequenceRun> runs;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t queries = q[b + 1] - q[b], keys = k[b + 1] - k[b];
    const bool split = splits_keys(queries, keys);
    if (!runs.empty()) {
      SequenceRun& run = runs.back();
      const bool splits = splits_keys(run.queries, run.keys);
      if (split == splits && (!split || queries == run.queries)) {
        run.last = b + 1;
        run.queries = larger(run.queries, queries);
        run.keys = larger(run.keys, keys);
        continue;
      }
    }
    runs.push_back({b, b + 1, queries, keys});
  }
  return runs;
}

AttentionCall part_of(const AttentionCall& call, const SequenceRun& run) {
  AttentionCall part = call;
  BatchShape& shape = part.attention.shape;
  shape.batch = run.last - run.first;
  shape.queries = run.queries;
  shape.keys = run.keys;
  shape.query_offsets += run.first;
  shape.key_offsets += run.first;
  if (shape.query_positions) shape.query_positions += run.first;
  if (shape.key_lengths) shape.key_lengths += run.first;
  ScoreRules& rules = part.attention.rules;
  rules.mask = without(rules.mask, run.first);
  rules.alibi_slopes = without(rules.alibi_slopes, run.first);
  rules.offsets.batch += run.first;
  return part;
}

}  // namespace multihead
