// The limits of a machine: FMAs of one instruction set, and reading memory, on vectors as the
// kernels have them: compiled once per ISA.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "../../csrc/kernels/vec.h"

namespace {

using namespace multihead::MULTIHEAD_ISA;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Multiplies and adds in registers, in as many chains as hide the latency; returns its flops.
double fma_loop(int64_t iterations) {
  constexpr int N = kRegisters == 32 ? 16 : 12;
  F32 acc[N];
  for (int i = 0; i < N; ++i) acc[i] = F32{} + float(i);
  F32 a = splat(0.5f), b = splat(0.25f);
  for (int64_t n = 0; n < iterations; ++n) {
    MULTIHEAD_FORGET(a);
    MULTIHEAD_FORGET(b);
    MULTIHEAD_UNROLL(16)
    for (int i = 0; i < N; ++i) acc[i] = fma(acc[i], a, b);
  }
  F32 sum{};
  for (int i = 0; i < N; ++i) sum += acc[i];
  volatile float sink = sum[0];
  (void)sink;
  return 2.0 * double(iterations) * N * kWidth<float>;
}

// Reads floats once, in several streams, as a row of keys after another is read; returns their sum.
float read_loop(const float* data, int64_t floats) {
  constexpr int kStreams = 4;
  const int64_t each = floats / kStreams / (4 * kWidth<float>)*(4 * kWidth<float>);
  F32 acc[kStreams][4] = {};
  for (int64_t i = 0; i < each; i += 4 * kWidth<float>) {
    MULTIHEAD_UNROLL(4)
    for (int s = 0; s < kStreams; ++s) {
      const float* const at = data + s * each + i;
      MULTIHEAD_PREFETCH_L1(at + 1024);
      MULTIHEAD_UNROLL(4)
      for (int j = 0; j < 4; ++j) acc[s][j] += load(at + j * kWidth<float>);
    }
  }
  F32 sum{};
  for (auto& stream : acc)
    for (F32 x : stream) sum += x;
  return sum[0];
}

}  // namespace

// Reads so many floats, a part in each thread, as fast as it can.
extern "C" MULTIHEAD_EXPORT void read_floats(const float* data, int64_t floats, int threads) {
  std::vector<std::thread> others;
  const auto part = [&](int thread) {
    const int64_t begin = floats * thread / threads, end = floats * (thread + 1) / threads;
    volatile float sink = read_loop(data + begin, end - begin);
    (void)sink;
  };
  for (int i = 1; i < threads; ++i) others.emplace_back(part, i);
  part(0);
  for (std::thread& other : others) other.join();
}

// Flops per second of `threads` threads at once, the caller among them, for so many seconds.
extern "C" MULTIHEAD_EXPORT double fma_rate(double seconds, int threads) {
  std::vector<double> flops(size_t(threads), 0.0);
  std::vector<std::thread> others;
  std::atomic<int> ready{0};
  Clock::time_point begin;
  const auto run = [&](int thread) {
    double done = 0;
    do done += fma_loop(20000);
    while (seconds_since(begin) < seconds);
    flops[size_t(thread)] = done;
  };
  std::atomic<bool> go{false};
  for (int i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      ++ready;
      while (!go) std::this_thread::yield();
      run(i);
    });
  }
  while (ready < threads - 1) std::this_thread::yield();
  begin = Clock::now();
  go = true;
  run(0);
  for (std::thread& other : others) other.join();
  const double elapsed = seconds_since(begin);
  double sum = 0;
  for (double each : flops) sum += each;
  return sum / elapsed;
}
