// The one translation unit of a kernel set: compiled once per ISA with that ISA's flags.
#include "attention_backward.h"
#include "attention_forward.h"
#include "dropout.h"
#include "masks.h"
#include "softmax_row.h"
#include "transpose.h"
#include "weights.h"

namespace multihead {
namespace MULTIHEAD_ISA {
namespace {

template <class T>
double fma_loop(int64_t iterations) {
  constexpr int N = kRegisters == 32 ? 16 : 12;
  Vec<T> acc[N];
  for (int i = 0; i < N; ++i) acc[i] = Vec<T>{} + T(i);
  Vec<T> a = splat(T(0.5)), b = splat(T(0.25));
  for (int64_t n = 0; n < iterations; ++n) {
    MULTIHEAD_FORGET(a);
    MULTIHEAD_FORGET(b);
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < N; ++i) acc[i] = fma(acc[i], a, b);
  }
  Vec<T> sum{};
  for (int i = 0; i < N; ++i) sum += acc[i];
  volatile T sink = sum[0];
  (void)sink;
  return 2.0 * double(iterations) * N * kWidth<T>;
}

double fma_rate(int64_t iterations, bool f64) {
  return f64 ? fma_loop<double>(iterations) : fma_loop<float>(iterations);
}

template <class T>
constexpr Kernels<T> kTable = {
    gemm<T>,
    pack<T>,
    unpack<T>,
    gather<T>,
    transpose<T>,
    scale<T>,
    add_scaled<T>,
    row_sums<T>,
    column_sums<T>,
    delta<T>,
    finite<T>,
    forward_block<T>,
    forward_end<T>,
    score_gradients<T>,
    backward_block<T>,
    weights_block<T>,
    row_scores<T>,
    softmax_row<T>,
    exp2_all<T>,
    visible_bits,
    visible_bits_additive<T>,
    additive_to_log2<T>,
};

#define MULTIHEAD_STRING(x) #x
#define MULTIHEAD_NAME(x) MULTIHEAD_STRING(x)
constexpr KernelSet kSet = {MULTIHEAD_NAME(MULTIHEAD_ISA),
                            &kTable<float>,
                            &kTable<double>,
                            dropout_rows,
                            keep_bits,
                            fma_rate};

}  // namespace
}  // namespace MULTIHEAD_ISA

#define MULTIHEAD_JOIN(a, b) a##b
#define MULTIHEAD_ACCESSOR(isa) MULTIHEAD_JOIN(isa, _kernels)
const KernelSet& MULTIHEAD_ACCESSOR(MULTIHEAD_ISA)() { return MULTIHEAD_ISA::kSet; }

}  // namespace multihead
