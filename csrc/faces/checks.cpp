#include "checks.h"

#include <utility>

namespace multihead::faces {
namespace {

const char* name_of(DType type) {
  switch (type) {
    case DType::Bool:
      return "bool";
    case DType::Float16:
      return "float16";
    case DType::BFloat16:
      return "bfloat16";
    case DType::Float32:
      return "float32";
    case DType::Float64:
      return "float64";
  }
  return "another";
}

void check_offsets(const char* name, const int64_t* offsets, int64_t batch, int64_t total) {
  bool rising = offsets[0] == 0 && offsets[batch] == total;
  for (int64_t b = 0; b < batch; ++b) rising &= offsets[b] <= offsets[b + 1];
  if (!rising) wrong(name, "offsets that rise from 0 to " + std::to_string(total), "others");
}

}  // namespace

std::string text(const int64_t* size, int rank) {
  std::string s = "(";
  for (int i = 0; i < rank; ++i) s += (i ? ", " : "") + std::to_string(size[i]);
  return s + (rank == 1 ? ",)" : ")");
}

void wrong(const std::string& name, const std::string& expected, const std::string& got) {
  throw WrongArgument(name + ": expected " + expected + ", got " + got);
}

void check_type(const char* name, const View& v, DType type) {
  if (v && v.dtype != type) wrong(name, name_of(type), name_of(v.dtype));
}

void check_size(const char* name, const View& v, std::initializer_list<int64_t> size) {
  bool fits = v.rank == int(size.size());
  int i = 0;
  for (int64_t n : size) fits = fits && v.size[i++] == n;
  if (!fits) wrong(name, text(size.begin(), int(size.size())), text(v.size, v.rank));
}

void check_floats(const char* name, const View& v, DType type) {
  const bool mixes =
      v.dtype != DType::Bool && (v.dtype == DType::Float64) == (type == DType::Float64);
  if (v && !mixes) check_type(name, v, type);
}

void check_floats_of(const char* name, const View& v, DType type,
                     std::initializer_list<int64_t> size) {
  check_size(name, v, size);
  check_floats(name, v, type);
}

void check_shape(const char* name, const View& v, DType type, std::initializer_list<int64_t> size) {
  check_size(name, v, size);
  check_type(name, v, type);
}

void check_rank(const char* name, const View& v, int low, int high) {
  if (v.rank < low || v.rank > high)
    wrong(name, "from " + std::to_string(low) + " to " + std::to_string(high) + " axes",
          text(v.size, v.rank));
}

void swap_axes(View& v, int a, int b) {
  std::swap(v.size[a], v.size[b]);
  std::swap(v.stride[a], v.stride[b]);
}

void insert_axis(View& v, int at) {
  for (int i = v.rank; i > at; --i) v.size[i] = v.size[i - 1], v.stride[i] = v.stride[i - 1];
  v.size[at] = 1;
  v.stride[at] = 0;
  ++v.rank;
}

void check_tokens(const BatchShape& shape) {
  constexpr int64_t kMost = (int64_t(1) << 31) - 65536;
  const std::pair<const char*, int64_t> both[] = {{"query", shape.queries}, {"key", shape.keys}};
  for (const auto& [name, tokens] : both)
    if (tokens > kMost)
      wrong(name, "at most " + std::to_string(kMost) + " tokens", std::to_string(tokens));
}

BatchShape ragged_shape(const RaggedOffsets& offsets, int64_t queries, int64_t keys) {
  BatchShape s;
  s.batch = offsets.batch;
  s.query_offsets = offsets.query;
  s.key_offsets = offsets.key;
  check_offsets("query offsets", s.query_offsets, s.batch, queries);
  check_offsets("key offsets", s.key_offsets, s.batch, keys);
  for (int64_t b = 0; b < s.batch; ++b) {
    s.queries = larger(s.queries, s.query_offsets[b + 1] - s.query_offsets[b]);
    s.keys = larger(s.keys, s.key_offsets[b + 1] - s.key_offsets[b]);
  }
  return s;
}

View mask_of(const View& v, const AttentionSpec& spec) {
  if (v && v.dtype != DType::Bool) check_floats("mask", v, spec.dtype);
  return score_axes(v, spec);
}

View slopes_of(View v, const AttentionSpec& spec) {
  if (!v) return v;
  const int64_t H = spec.heads.count;
  check_floats("alibi_slopes", v, spec.dtype);
  if (v.rank == 2) {
    check_size("alibi_slopes", v, {spec.shape.batch, H});
  } else {
    check_size("alibi_slopes", v, {H});
    insert_axis(v, 0);
    v.size[0] = spec.shape.batch;
  }
  return v;
}

}  // namespace multihead::faces
