#include "batches.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace multihead::xla {

Batches::Batches(std::vector<Operand*> operands, bool folds) : operands_(std::move(operands)) {
  std::erase_if(operands_, [](const Operand* o) { return !*o; });
  for (const Operand* o : operands_) {
    if (o->lead.size() != operands_[0]->lead.size())
      throw std::invalid_argument("operands: expected as many axes of vmap in each");
    if (o->batch() != 1) sequences_ = o->batch();
  }
  sizes_.assign(operands_[0]->lead.size(), 1);
  for (const Operand* o : operands_)
    for (size_t i = 0; i < sizes_.size(); ++i)
      if (o->mapped(i)) sizes_[i] = o->lead[i];
  while (folds && !sizes_.empty() && fold(sizes_.size() - 1, sizes_.back())) sizes_.pop_back();
  indices_.assign(sizes_.size(), 0);
}

// The innermost axis that is left, if no operand is in its way: one that is mapped has all the
// sequences there are, and one that is not has the same for all.
bool Batches::fold(size_t axis, int64_t size) {
  if (size == 1) return true;
  for (const Operand* o : operands_) {
    if (o->mapped(axis) ? o->batch_axis < 0 || o->batch() != sequences_ : o->batch() != 1)
      return false;
  }
  for (Operand* o : operands_)
    if (o->mapped(axis)) o->view.size[o->batch_axis] *= size;
  sequences_ *= size;
  return true;
}

void Batches::expand(Operand& operand) const {
  if (!operand || operand.batch() != 1 || sequences_ == 1) return;
  operand.view.size[operand.batch_axis] = sequences_;
  operand.view.stride[operand.batch_axis] = 0;
}

faces::Outcome Batches::each(const std::function<faces::Outcome()>& one) {
  if (std::ranges::find(sizes_, 0) != sizes_.end()) return {};
  for (;;) {
    const faces::Outcome outcome = one();
    if (outcome.status != faces::Status::Done) return outcome;
    size_t axis = sizes_.size();
    while (axis > 0 && ++indices_[axis - 1] == sizes_[axis - 1]) indices_[--axis] = 0;
    if (axis == 0) return {};
  }
}

int64_t Batches::offset(const Operand& operand) const {
  int64_t element = 0;
  for (size_t i = 0; i < indices_.size(); ++i)
    if (operand && operand.mapped(i)) element += indices_[i] * operand.lead_stride(i);
  return element;
}

}  // namespace multihead::xla
