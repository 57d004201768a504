// One input of the C functions, held against the oracle.
#pragma once

#include "problem.h"

namespace fuzz {

void run(Draws& draws, Problem& problem);

}  // namespace fuzz
