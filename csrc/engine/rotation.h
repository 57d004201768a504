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
  Rotation(const Plan& plan, const Kernels<E>& kernels, const AttentionSpec& spec)
      : plan_(plan), kernels_(kernels), rotary_(spec.rotary), pairs_(rotary_.pairs()) {}

  bool on() const { return pairs_ > 0; }
  // Elements of what one tile needs.
  int64_t scratch() const { return 2 * pairs_ * kTile; }

  // The angles of a tile's tokens: rows of cosines and of sines, a lane a token.
  struct Angles {
    const Acc<E>*cosine, *sine;
    int64_t row;
  };
  Angles angles(const TileAt& at, Tokens tokens, Acc<E>* scratch) const;
  // Turns the sums [features][lanes] of one head, or turns them back.
  void turn(Acc<E>* sums, int64_t lanes, const Angles& angles, bool back) const;

 private:
  const Plan& plan_;
  const Kernels<E>& kernels_;
  const Rotary rotary_;
  const int64_t pairs_;
};

}  // namespace multihead
