// What the processor can do, and how much of it this process may use.
#pragma once

namespace multihead::platform {

// Instruction sets of the kernels, the operating system's support for their registers included.
bool has_avx2();    // and FMA and F16C
bool has_avx512();  // F, VL, BW and DQ, and all of AVX2's
bool has_avx512_bf16();
// Whether its products of pairs outrun fused multiply-adds: not where AMX is there to do them.
bool multiplies_pairs_fast();
bool has_amx();  // its tiles and bfloat16; the first call asks the system for them
bool has_neon_bf16();
// Asks the system for AMX's tile registers; others than Linux are not asked.
bool may_use_tiles();

// Of the affinity mask and the cgroup's quota, whichever is smaller; at least 1.
int usable_cpus();

// Rounding mode and denormal handling of the calling thread.
unsigned float_state();
void set_float_state(unsigned state);

}  // namespace multihead::platform
