// Rotary positions (Su et al., "RoFormer", 2021): queries and keys are turned by the angles of
// their positions between projection and attention, their gradients back between attention and
// projection. Keys after those of a sequence have no position.
#pragma once

#include "arena.h"
#include "plan.h"

namespace multihead {

template <class E>
class Rotation {
 public:
  Rotation(const Kernels<E>& kernels, const Rotary& rotary)
      : kernels_(kernels), rotary_(rotary), pairs_(rotary.pairs()) {}

  bool on() const { return pairs_ > 0; }
  // Elements of what one tile needs.
  int64_t scratch() const { return 2 * pairs_ * kTile; }

  // The angles of a tile's tokens: rows of cosines and of sines, a lane a token.
  struct Angles {
    const Acc<E>*cosine, *sine;
    int64_t row;
  };
  Angles angles(const TileAt& at, Tokens tokens, Acc<E>* scratch) const;
  // The same of `count` tokens by their positions, in so many lanes; the rest are not turned.
  template <class Position>
  Angles gathered(int64_t count, int64_t lanes, Position position, Acc<E>* scratch) const;
  // Turns the sums [features][lanes] of one head, or turns them back.
  void turn(Acc<E>* sums, int64_t lanes, const Angles& angles, bool back) const;

 private:
  const Kernels<E>& kernels_;
  const Rotary rotary_;
  const int64_t pairs_;
};

template <class E>
template <class Position>
auto Rotation<E>::gathered(int64_t count, int64_t lanes, Position position, Acc<E>* scratch) const
    -> Angles {
  const View &cosine = rotary_.cosine, &sine = rotary_.sine;
  Acc<E>*const c = scratch, *const s = scratch + pairs_ * kTile;
  for (int64_t i = 0; i < pairs_; ++i)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t from = lane < count ? position(lane) : 0;
      c[i * kTile + lane] = lane < count ? cosine.as<Acc<E>>()[cosine.at(i, from)] : Acc<E>(1);
      s[i * kTile + lane] = lane < count ? sine.as<Acc<E>>()[sine.at(i, from)] : Acc<E>(0);
    }
  return {c, s, kTile};
}

}  // namespace multihead
