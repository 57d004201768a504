// Runs of sequences that go the same way: those of a ragged batch are computed as each would be by
// itself, so that few queries of some split their keys whatever the others are.
#pragma once

#include <vector>

#include "functional.h"

namespace multihead {

struct SequenceRun {
  int64_t first, last;    // sequences, the last one not among them
  int64_t queries, keys;  // of the longest
};

// In order; one of a dense batch.
std::vector<SequenceRun> sequence_runs(const AttentionCall& call);

// Some sequences of a call, on the same arrays.
AttentionCall part_of(const AttentionCall& call, const SequenceRun& run);

}  // namespace multihead
