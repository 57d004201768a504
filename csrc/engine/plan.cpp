#include "plan.h"

#include <algorithm>
#include <limits>

namespace multihead {
namespace {

bool hides(const View& mask, int64_t at) {
  switch (mask.dtype) {
    case DType::Bool:
      return mask.as<const uint8_t>()[at] != 0;
    case DType::Float16:
    case DType::BFloat16:
    case DType::Float32:
      return mask.get<float>(at) == -std::numeric_limits<float>::infinity();
    case DType::Float64:
      return mask.get<double>(at) == -std::numeric_limits<double>::infinity();
  }
  return false;
}

}  // namespace

int64_t Sequence::keys_before(int64_t position) const {
  if (positions) return std::lower_bound(positions, positions + keys, position) - positions;
  return larger(0, smaller(position, keys));
}

Plan::Plan(const AttentionSpec& spec, TileLayout tile_layout, For what)
    : heads(spec.heads), layout(tile_layout), bias_key(spec.bias_key), zero_row(spec.zero_row) {
  const BatchShape& shape = spec.shape;
  if (what == For::Sizes && !shape.query_offsets && !shape.key_lengths && !shape.key_padding) {
    query_lanes = shape.batch * round_up(shape.queries, kLane);
    key_lanes = shape.batch * round_up(shape.keys + extra_keys(), kLane);
    return;
  }
  sequences.resize(size_t(shape.batch));
  if (shape.key_padding) positions_.reserve(size_t(shape.batch * shape.keys));
  int64_t pairs = 0;
  for (int64_t b = 0; b < shape.batch; ++b) {
    Sequence& s = sequences[size_t(b)];
    const int64_t *q = shape.query_offsets, *k = shape.key_offsets;
    s.first_query = q ? q[b] : 0;
    s.first_key = k ? k[b] : 0;
    s.queries = q ? q[b + 1] - q[b] : shape.queries;
    s.source_keys = s.keys = k ? k[b + 1] - k[b] : shape.keys;
    if (shape.key_lengths) s.keys = smaller(s.keys, shape.key_lengths[b]);
    s.first_position = shape.query_positions ? shape.query_positions[b] : 0;
    s.positions = nullptr;
    if (const View& mask = shape.key_padding) {
      const size_t begin = positions_.size();
      for (int64_t j = 0; j < s.keys; ++j)
        if (!hides(mask, mask.at(b, j))) positions_.push_back(int32_t(j));
      s.keys = int64_t(positions_.size() - begin);
      if (s.keys == 0 || positions_.back() == s.keys - 1) {
        positions_.resize(begin);  // the visible keys are the first ones
      } else {
        s.positions = positions_.data() + begin;  // reserved above: does not move
      }
    }
    s.attended_keys = s.keys + extra_keys();
    s.query_lane = query_lanes;
    s.key_lane = key_lanes;
    s.pairs = pairs;
    query_lanes += round_up(s.queries, kLane);
    key_lanes += round_up(s.attended_keys, kLane);
    pairs += s.queries * (s.source_keys + extra_keys());
    for (int64_t t = 0; t < s.query_tiles(); ++t) query_tiles.push_back({int32_t(b), int32_t(t)});
    for (int64_t t = 0; t < tiles_of(s.keys); ++t) key_tiles.push_back({int32_t(b), int32_t(t)});
  }
}

int64_t Plan::work() const {
  const int64_t both = heads.dim + heads.value_dim, width = heads.count * both;
  int64_t pairs = 0;
  for (const Sequence& s : sequences) pairs += s.queries * s.attended_keys;
  const int64_t projections = size_product(query_lanes + key_lanes, width, width) / 2;
  return smaller(pairs * width, kMostElements) + smaller(projections, kMostElements);
}

}  // namespace multihead
