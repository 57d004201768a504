#include "rotation.h"

namespace multihead {

// Where the table lies, if it has a row of this tile's tokens side by side; else a copy.
template <class E>
auto Rotation<E>::angles(const TileAt& at, Tokens tokens, Acc<E>* scratch) const -> Angles {
  const bool queries = tokens == Tokens::Queries;
  const Sequence& s = at.sequence;
  const int64_t first = (queries ? at.query_tile : at.key_tile) * kTile;
  const int64_t n = queries ? at.queries() : at.given_keys();
  const int64_t lanes = queries ? at.query_lanes() : at.key_lanes();
  const View &cosine = rotary_.cosine, &sine = rotary_.sine;
  const auto column = [&](int64_t i) {
    return queries ? s.first_position + first + i : s.position(first + i);
  };
  const int64_t begin = n > 0 ? column(0) : 0;
  const bool in_a_row = queries || !s.positions;
  const bool all_given = queries || n == at.keys();
  if (in_a_row && all_given && cosine.stride[1] == 1 && sine.stride[1] == 1 &&
      sine.stride[0] == cosine.stride[0] && begin + lanes <= cosine.size[1])
    return {cosine.as<Acc<E>>() + begin, sine.as<Acc<E>>() + begin, cosine.stride[0]};
  return gathered(n, lanes, column, scratch);
}

template <class E>
void Rotation<E>::turn(Acc<E>* sums, int64_t lanes, const Angles& angles, bool back) const {
  kernels_.rotate({.x = sums,
                   .lanes = lanes,
                   .pairs = pairs_,
                   .step = rotary_.interleaved ? 2 : 1,
                   .apart = rotary_.interleaved ? 1 : pairs_,
                   .cosine = angles.cosine,
                   .sine = angles.sine,
                   .row = angles.row,
                   .back = back});
}

template class Rotation<BFloat16>;
template class Rotation<float>;
template class Rotation<double>;

}  // namespace multihead
