// The axes that vmap added. They become sequences of one call of the engine wherever every operand
// lets them, and what remains are calls one after another.
#pragma once

#include <functional>
#include <vector>

#include "../faces/guarded.h"
#include "operand.h"

namespace multihead::xla {

class Batches {
 public:
  // `operands` live as long as this; absent ones are left out. With `folds` as many axes as can be
  // become sequences of the operands.
  Batches(std::vector<Operand*> operands, bool folds);

  int64_t sequences() const { return sequences_; }
  // Gives an operand as many sequences as the call has, all in one place if it was not mapped.
  void expand(Operand& operand) const;

  // Calls `one` for each entry of what remains, until one fails. It finds where an operand's entry
  // begins by `offset`.
  faces::Outcome each(const std::function<faces::Outcome()>& one);
  int64_t offset(const Operand& operand) const;
  View view(const Operand& operand) const { return operand.at(offset(operand)); }

 private:
  bool fold(size_t axis, int64_t size);

  std::vector<Operand*> operands_;
  int64_t sequences_ = 1;
  std::vector<int64_t> sizes_;    // of the axes that remain
  std::vector<int64_t> indices_;  // of the entry at hand
};

}  // namespace multihead::xla
