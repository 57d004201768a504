// Executes one instruction, by the name of the feature that has it, and ends well where the
// processor has it; elsewhere SIGILL ends the program. "none" executes none.
#include <cstdio>
#include <cstring>

namespace {

struct Instruction {
  const char* feature;
  void (*execute)();
};

const Instruction kInstructions[] = {
    {"none", [] {}},
#if defined(__x86_64__)
    {"avx",
     [] {
       asm volatile("vaddps %%ymm0, %%ymm0, %%ymm0" ::: "xmm0");
     }},
    {"fma",
     [] {
       asm volatile("vfmadd231ps %%ymm0, %%ymm0, %%ymm0" ::: "xmm0");
     }},
    {"f16c",
     [] {
       asm volatile("vcvtph2ps %%xmm0, %%ymm0" ::: "xmm0");
     }},
    {"avx2",
     [] {
       asm volatile("vpaddd %%ymm0, %%ymm0, %%ymm0" ::: "xmm0");
     }},
    {"avx512f",
     [] {
       asm volatile("vpaddd %%zmm0, %%zmm0, %%zmm0" ::: "xmm0");
     }},
#elif defined(__aarch64__)
    {"bf16",
     [] {
       asm volatile(".inst 0x6e40fc00" ::: "v0");
     }},  // bfdot v0.4s, v0.8h, v0.8h
#endif
};

}  // namespace

int main(int count, char** words) {
  for (const Instruction& one : kInstructions) {
    if (count < 2 || std::strcmp(words[1], one.feature) != 0) continue;
    one.execute();
    return 0;
  }
  std::printf("expected the name of a feature\n");
  return 2;
}
