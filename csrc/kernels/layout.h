// What a kernel set decides about memory: the types that an element type is computed in, and where
// the elements of a tile lie.
#pragma once

#include "storage.h"

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
template <>
struct Element<BFloat16> {
  using Acc = float;
  using Stat = float;
};
template <class E>
using Acc = typename Element<E>::Acc;
template <class E>
using Stat = typename Element<E>::Stat;

// Elements with less precision than sums of them. A factor on these would round them once more, so
// it goes to the sums.
template <class E>
constexpr bool kRounds = sizeof(E) < sizeof(Acc<E>);

// A tile is [features / group][lanes][group]: `group` neighbours of one token lie together, where
// an instruction multiplies that many at once; or [lanes][features], where products read it token
// by token. Who writes a tile fills up its features with zeros to a multiple of `step`; products
// over features run over these too.
struct TileLayout {
  int64_t group = 1;
  int64_t step = group;  // a multiple of the group
  bool by_token = false;

  constexpr int64_t rows(int64_t features) const { return (features + step - 1) / step * step; }
  constexpr int64_t size(int64_t features, int64_t lanes) const { return rows(features) * lanes; }
  // Where the elements of a feature and a token lie, in a tile of so many features.
  constexpr int64_t at(int64_t feature, int64_t lane, int64_t features, int64_t lanes) const {
    if (by_token) return lane * rows(features) + feature;
    return (feature / group * lanes + lane) * group + feature % group;
  }
};

// How products want packed weights: rows of k, or blocks of so many rows and so much of k, row by
// row, those along k side by side.
struct LeftLayout {
  int64_t rows = 1, depth = 0;  // 0: all of k
  int64_t aligned = 1;          // bytes: of weights that are read where they lie

  constexpr int64_t filled(int64_t m) const { return (m + rows - 1) / rows * rows; }
  // Where a row's element k of k_all lies, k a multiple of the depth.
  constexpr int64_t at(int64_t row, int64_t k, int64_t k_all) const {
    return depth ? row / rows * rows * k_all + k * rows + row % rows * depth : row * k_all + k;
  }
};

}  // namespace multihead
