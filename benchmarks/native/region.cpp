// The cost of waking the engine's threads: its pool, compiled from its own source beside this.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "../../csrc/engine/thread_pool.h"
#include "../../csrc/platform/compiler.h"

// The median time of a region in which every thread has one task, all of them empty.
extern "C" MULTIHEAD_EXPORT double region_seconds(int iterations, int threads) {
  using Clock = std::chrono::steady_clock;
  multihead::set_num_threads(threads);
  const std::vector<multihead::Phase> phases{{threads, [](int64_t, int) {}}};
  std::vector<double> seconds(size_t(std::max(iterations, 1)));
  for (double& s : seconds) {
    const auto begin = Clock::now();
    multihead::run_phases(phases, threads);
    s = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  const auto middle = seconds.begin() + int64_t(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}
