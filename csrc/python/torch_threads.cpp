#include "torch_threads.h"

#include <Python.h>

#include <atomic>
#include <chrono>

#include "../platform/cpu.h"
#include "../platform/library.h"
#include "../platform/threads.h"

namespace multihead::binding {
namespace {

using platform::ThreadClock;

// GNU's OpenMP, the one that PyTorch's libraries for Linux bring.
struct Runtime {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*level)();
  int (*max_threads)();
  int (*thread)();

  explicit operator bool() const { return parallel && level && max_threads && thread; }

  // Whether a region from here would have that many threads, and those that PyTorch's have.
  bool offers(int threads) const { return level() == 0 && max_threads() == threads; }
};

template <class F>
void look_up(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(platform::find_function(library, name));
}

std::atomic<const Runtime*> g_runtime{nullptr};
std::atomic<bool> g_wanted{false};  // by a call, and not known

// A runtime keeps a team for each thread that starts regions. One of its workers stands for all.
struct Team {
  ThreadClock clock;                // of the processor time that the worker has had
  std::chrono::nanoseconds seen{};  // on that clock
};
thread_local Team t_team;

// Whatever name the runtime has been given, PyTorch's library leads to it, and stays open: it must
// not go before us.
const Runtime* find_runtime() {
  void* library = platform::find_library("libtorch_cpu.so");
  if (!library) return nullptr;
  Runtime runtime;
  look_up(library, "GOMP_parallel", runtime.parallel);
  look_up(library, "omp_get_level", runtime.level);
  look_up(library, "omp_get_max_threads", runtime.max_threads);
  look_up(library, "omp_get_thread_num", runtime.thread);
  return runtime ? new Runtime(runtime) : nullptr;
}

// A thread spins if its processor time goes on while we look.
bool spins(Team& team) {
  std::chrono::nanoseconds now{};
  for (int looks = 0; looks < 2; ++looks) {
    if (!team.clock.read(&now)) team.clock = {};  // it has ended
    if (!team.clock || now == team.seen) return false;
    team.seen = now;
  }
  return true;
}

struct Job {
  const Runtime& runtime;
  Work work;
  void* data;
};

void run_job(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  const unsigned theirs = platform::float_state();
  job.work(job.data, job.runtime.thread());
  platform::set_float_state(theirs);
}

void meet(int threads) {
  if (t_team.clock) return;
  const Runtime* runtime = g_runtime.load();
  if (!runtime) return g_wanted.store(true);
  if (!runtime->offers(threads)) return;
  Team team;
  const Work look = [](void* data, int worker) {
    if (worker == 1) static_cast<Team*>(data)->clock = ThreadClock::of_this_thread();
  };
  Job job{*runtime, look, &team};
  runtime->parallel(run_job, &job, 0, 0);
  t_team = team;
}

bool run(int threads, Work work, void* data) {
  if (!t_team.clock) return false;
  const Runtime& runtime = *g_runtime.load();
  if (!runtime.offers(threads) || !spins(t_team)) return false;
  Job job{runtime, work, data};
  runtime.parallel(run_job, &job, 0, 0);
  return true;
}

}  // namespace

const ThreadSource kTorchThreads = {meet, run};

void meet_torch() {
  static bool asked = false;  // guarded by the GIL
  if (asked || !g_wanted.load(std::memory_order_relaxed)) return;
  g_wanted = false;
  PyObject* modules = PyImport_GetModuleDict();
  if (!PyDict_GetItemString(modules, "torch._C")) return;
  asked = true;
  g_runtime = find_runtime();
}

}  // namespace multihead::binding
