#include "plan.h"

#include <limits>

namespace multihead {
namespace {

template <class T>
T log2_units(T x) {
  constexpr T largest = std::numeric_limits<T>::max();
  const T y = x * T(1.4426950408889634);
  if (x >= -largest && x <= largest) return y < -largest ? -largest : y > largest ? largest : y;
  return x;
}

bool hides(const View& mask, int64_t at) {
  switch (mask.dtype) {
    case DType::Bool:
      return mask.as<const uint8_t>()[at] != 0;
    case DType::Float32:
      return mask.as<const float>()[at] == -std::numeric_limits<float>::infinity();
    default:
      return mask.as<const double>()[at] == -std::numeric_limits<double>::infinity();
  }
}

}  // namespace

void make_plan(Plan& plan, const BatchShape& shape) {
  const int64_t n = shape.batch;
  plan.sequences.resize(size_t(n));
  if (shape.key_padding) plan.positions.reserve(size_t(n * shape.keys));
  int64_t weights = 0;
  for (int64_t b = 0; b < n; ++b) {
    Sequence& s = plan.sequences[size_t(b)];
    const int64_t *q = shape.query_offsets, *k = shape.key_offsets;
    s.first_query = q ? q[b] : 0;
    s.first_key = k ? k[b] : 0;
    s.queries = q ? q[b + 1] - q[b] : shape.queries;
    s.source = s.keys = k ? k[b + 1] - k[b] : shape.keys;
    s.positions = nullptr;
    if (const View& mask = shape.key_padding) {
      const size_t begin = plan.positions.size();
      for (int64_t j = 0; j < s.source; ++j)
        if (!hides(mask, b * mask.stride[0] + j * mask.stride[1]))
          plan.positions.push_back(int32_t(j));
      s.keys = int64_t(plan.positions.size() - begin);
      if (s.keys == 0 || plan.positions.back() == s.keys - 1) {
        plan.positions.resize(begin);  // the visible keys are the first ones
      } else {
        s.positions = plan.positions.data() + begin;  // reserved above: does not move
      }
    }
    s.query_lane = plan.query_lanes;
    s.key_lane = plan.key_lanes;
    s.weights = weights;
    plan.query_lanes += round_up(s.queries, kLane);
    plan.key_lanes += round_up(plan.rows(s), kLane);
    weights += shape.weight_heads * s.queries * (s.source + plan.extra());
    for (int64_t t = 0; t < tiles_of(s.queries); ++t)
      plan.query_tiles.push_back({int32_t(b), int32_t(t)});
    for (int64_t t = 0; t < tiles_of(s.keys); ++t)
      plan.key_tiles.push_back({int32_t(b), int32_t(t)});
  }
}

bool padding_adds(const BatchShape& shape) {
  return shape.key_padding && shape.key_padding.dtype != DType::Bool;
}

template <class T>
bool padding_bias(const Plan& plan, const BatchShape& shape, T* values) {
  const View& mask = shape.key_padding;
  bool adds = false;
  for (size_t b = 0; b < plan.sequences.size(); ++b) {
    const Sequence& s = plan.sequences[b];
    T* row = values + s.key_lane;
    for (int64_t j = 0; j < s.keys; ++j) {
      const int64_t position = s.positions ? s.positions[j] : j;
      const T x = mask.as<const T>()[int64_t(b) * mask.stride[0] + position * mask.stride[1]];
      row[j] = log2_units(x);
      adds |= x != T(0);
    }
    for (int64_t j = s.keys; j < plan.rows(s); ++j) row[j] = T(0);
  }
  return adds;
}

template bool padding_bias<float>(const Plan&, const BatchShape&, float*);
template bool padding_bias<double>(const Plan&, const BatchShape&, double*);

}  // namespace multihead
