#include "api.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

#include "engine/cpu.h"

namespace multihead {
namespace {

// Nothing is thrown across the table.
template <class F>
const char* guarded(F f) noexcept {
  thread_local std::string why;
  try {
    f();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (const std::exception& e) {
    try {
      why = e.what();
      return why.c_str();
    } catch (...) {
      return "out of memory";
    }
  }
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Flops per second of FMAs in registers on all workers at once: the limit of any kernel.
double fma_peak(double seconds, int threads, bool f64) {
  const KernelSet& set = kernels();
  std::vector<double> flops(size_t(threads), 0.0);
  const auto begin = Clock::now();
  const auto run = [&](int64_t task, int) {
    do {
      flops[size_t(task)] += set.fma_rate(20000, f64);
    } while (seconds_since(begin) < seconds);
  };
  run_phases({{threads, run}}, threads);
  const double elapsed = seconds_since(begin);
  double sum = 0;
  for (double f : flops) sum += f;
  return sum / elapsed;
}

// The median time of a region in which every thread has a task, all of them empty.
double region_seconds(int iterations) {
  const int threads = num_threads();
  const std::vector<Phase> phases{{threads, [](int64_t, int) {}}};
  std::vector<double> seconds(size_t(std::max(iterations, 1)));
  for (double& s : seconds) {
    const auto begin = Clock::now();
    run_phases(phases, threads);
    s = seconds_since(begin);
  }
  const auto middle = seconds.begin() + int64_t(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

const EngineTable kTable = {
    kTableVersion,
    [](const LayerCall& call, size_t* bytes) {
      return guarded([&] { *bytes = cache_bytes(call); });
    },
    [](const LayerCall& call, const View& out, const WeightsView& weights, void* cache) {
      return guarded([&] { layer_forward(call, out, weights, cache); });
    },
    [](const LayerCall& call, const void* cache, const View& d_out, const WeightsView& d_weights,
       const LayerGradients& gradients) {
      return guarded([&] { layer_backward(call, cache, d_out, d_weights, gradients); });
    },
    [](const AttentionCall& call, const View& out, const View& stats, const WeightsView& weights) {
      return guarded([&] { attention_forward(call, out, stats, weights); });
    },
    [](const AttentionCall& call, const View& stats, const View& delta, const View& d_out,
       const AttentionGradients& gradients) {
      return guarded([&] { attention_backward(call, stats, delta, d_out, gradients); });
    },
    [](const View& a, const View& b, const View& result) {
      return guarded([&] { row_dot(a, b, result); });
    },
    [](size_t bytes, void** block, void** data) {
      return guarded([&] {
        Block64* made = new Block64(bytes);
        *block = made;
        *data = made->data();
      });
    },
    [](void* block) { delete static_cast<Block64*>(block); },
    [](const char** name) { return guarded([&] { *name = kernels().name; }); },
    [](const char** names, int most) {
      const std::vector<const KernelSet*> sets = available_kernels();
      for (int i = 0; i < std::min(most, int(sets.size())); ++i) names[i] = sets[size_t(i)]->name;
      return int(sets.size());
    },
    [] { return num_threads(); },
    [](int threads) { set_num_threads(threads); },
    [](const ThreadSource* source) { return guarded([&] { set_thread_source(source); }); },
    [](double seconds, int threads, bool f64, double* rate) {
      return guarded([&] { *rate = fma_peak(seconds, threads, f64); });
    },
    [](int iterations, double* seconds) {
      return guarded([&] { *seconds = region_seconds(iterations); });
    },
};

}  // namespace
}  // namespace multihead

const multihead::EngineTable* multihead_private_table() { return &multihead::kTable; }
