// What the translation of arguments checks views by, and the rules that layers and attention alone
// are told alike.
#pragma once

#include <initializer_list>
#include <string>

#include "arguments.h"

namespace multihead::faces {

constexpr int64_t kFar = int64_t(1) << 40;  // positions, so that sums of them do not wrap

std::string text(const int64_t* size, int rank);
// Throws WrongArgument: "name: expected ..., got ...".
[[noreturn]] void wrong(const std::string& name, const std::string& expected,
                        const std::string& got);

void check_type(const char* name, const View& v, DType type);
void check_size(const char* name, const View& v, std::initializer_list<int64_t> size);
// A floating type that goes together with the one that the call is computed in.
void check_floats(const char* name, const View& v, DType type);
void check_floats_of(const char* name, const View& v, DType type,
                     std::initializer_list<int64_t> size);
void check_shape(const char* name, const View& v, DType type, std::initializer_list<int64_t> size);
void check_rank(const char* name, const View& v, int low, int high);

void swap_axes(View& v, int a, int b);
void insert_axis(View& v, int at);  // of size 1

// Fewer than 2^31 tokens of a sequence: positions of 32 bits draw dropout, and no call would end.
void check_tokens(const BatchShape& shape);
BatchShape ragged_shape(const RaggedOffsets& offsets, int64_t queries, int64_t keys);
View mask_of(const View& v, const AttentionSpec& spec);
View slopes_of(View v, const AttentionSpec& spec);  // (H) or (N, H) as (N, H)

template <class Options>
void set_rules(ScoreRules& rules, const Options& o) {
  if (!(o.softcap >= 0)) wrong("softcap", "0 or more", std::to_string(o.softcap));
  rules.softcap = o.softcap;
  rules.window_left = o.window_left;
  rules.window_right = o.window_right;
}

}  // namespace multihead::faces
