// What a kernel set decides about memory: the types that an element type is computed in, and where
// the elements of a tile lie.
#pragma once

#include <stdint.h>

namespace multihead {

constexpr int64_t kTile = 64;  // tokens in a tile, and bits in a mask word
constexpr int64_t kLane = 16;  // lanes of a tile are a multiple of this on every ISA

// Elements of type E are what arrays, tiles and weights hold. Products of them are summed in Acc,
// scores too; statistics of rows are Stat.
template <class E>
struct Element;
template <>
struct Element<float> {
  using Acc = float;
  using Stat = float;
};
template <>
struct Element<double> {
  using Acc = double;
  using Stat = double;
};
template <class E>
using Acc = typename Element<E>::Acc;
template <class E>
using Stat = typename Element<E>::Stat;

// A tile is [features / group][lanes][group]: `group` neighbours of one token lie together, where
// an instruction multiplies that many at once. Who writes a tile fills up the last group with
// zeros; products over features run over these too.
struct TileLayout {
  int64_t group = 1;  // divides kLane

  constexpr int64_t rows(int64_t features) const { return (features + group - 1) / group * group; }
  constexpr int64_t size(int64_t features, int64_t lanes) const { return rows(features) * lanes; }
  constexpr int64_t at(int64_t feature, int64_t lane, int64_t lanes) const {
    return (feature / group * lanes + lane) * group + feature % group;
  }
};

}  // namespace multihead
