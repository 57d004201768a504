#include "spec.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace multihead {

bool same(const View& a, const View& b) {
  if (a.data != b.data || a.rank != b.rank || a.dtype != b.dtype) return false;
  for (int i = 0; i < a.rank; ++i)
    if (a.size[i] != b.size[i] || (a.size[i] > 1 && a.stride[i] != b.stride[i])) return false;
  return true;
}

void check_sizes(const AttentionSpec& spec) {
  // The sum of two positions, and a tile more, fits into 32 bits.
  constexpr int64_t kMostTokens = (int64_t(1) << 31) - 65536, kMostIndices = (int64_t(1) << 31) - 1;
  const BatchShape& s = spec.shape;
  const Heads& heads = spec.heads;
  const auto check = [](const char* what, int64_t n, int64_t most) {
    if (n > most)
      throw std::invalid_argument(std::string(what) + ": expected at most " + std::to_string(most) +
                                  ", got " + std::to_string(n));
  };
  check("sequences of query", s.batch, kMostIndices);
  check("tokens of query", s.queries, kMostTokens);
  check("tokens of key", s.keys, kMostTokens);
  check("heads of query", heads.count, kMostIndices);
  // Above all arrays of a call: tokens and features of the last tiles, and rows after the keys.
  const auto tokens = [&](const int64_t* offsets, int64_t longest) {
    const double n = double(s.batch);
    return (offsets ? double(offsets[s.batch]) : n * double(longest)) + n * (kTile + 2);
  };
  const double width = double(heads.count) * (double(heads.dim) + double(heads.value_dim) + kTile);
  const double scores = tokens(s.query_offsets, s.queries) * (double(s.keys) + kTile + 2);
  const double rows =
      (tokens(s.query_offsets, s.queries) + tokens(s.key_offsets, s.keys)) * sizeof(double);
  if ((scores + rows) * width < double(kMostElements)) return;
  const int64_t sizes[] = {s.batch, heads.count, s.queries, s.keys, heads.dim, heads.value_dim};
  std::string got;
  for (int64_t n : sizes) got += (got.empty() ? "(" : ", ") + std::to_string(n);
  throw std::invalid_argument(
      "query, key and value: expected sizes whose product is below 2**62, got (N, H, L, S, D, Dv) "
      "= " +
      got + ")");
}

uint32_t Dropout::threshold() const {
  if (p >= 1) return 0x10000u;
  return uint32_t(std::min(std::floor(p * 65536.0 + 0.5), 65535.0));
}

double Dropout::keep_scale() const {
  const uint32_t t = threshold();
  return t > 0xFFFFu ? 0.0 : 65536.0 / double(65536u - t);
}

View own_axes(const View& mask, const AttentionSpec& spec) {
  if (!mask) return mask;
  const BatchShape& s = spec.shape;
  const int64_t heads = spec.heads.count, scores[4] = {s.batch, heads, s.queries, s.keys};
  View v = mask;
  v.rank = 4;
  for (int i = 0; i < 4; ++i) {
    const int from = i - 4 + mask.rank;  // the axis of the mask
    v.size[i] = from >= 0 ? mask.size[from] : 1;
    v.stride[i] = from >= 0 ? mask.stride[from] : 0;
  }
  bool fits = mask.rank >= 2;
  if (mask.rank == 3) {  // heads of one sequence, then those of the next
    fits = mask.size[0] == s.batch * heads;
    v.size[0] = s.batch, v.stride[0] = heads * mask.stride[0];
    v.size[1] = heads, v.stride[1] = mask.stride[0];
  }
  for (int i = 0; i < 4; ++i) fits &= v.size[i] == scores[i] || (v.size[i] == 1 && mask.rank == 4);
  if (mask.rank == 2) fits = v.size[2] == s.queries && v.size[3] == s.keys;
  if (fits) return v;
  std::string expected;
  for (int64_t n : scores) expected += (expected.empty() ? "(" : ", ") + std::to_string(n);
  throw std::invalid_argument("mask: expected a shape that broadcasts to " + expected + ")");
}

View score_axes(const View& mask, const AttentionSpec& spec) {
  View v = own_axes(mask, spec);
  const BatchShape& s = spec.shape;
  const int64_t scores[4] = {s.batch, spec.heads.count, s.queries, s.keys};
  for (int i = 0; i < v.rank; ++i)
    if (v.size[i] == 1 && scores[i] != 1) v.size[i] = scores[i], v.stride[i] = 0;
  for (int i = 0; i < v.rank; ++i)
    if (v.size[i] == 1) v.stride[i] = 0;
  return v;
}

}  // namespace multihead
