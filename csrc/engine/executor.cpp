#include "executor.h"

#if defined(__linux__)

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstdint>

#include "cpu.h"

namespace multihead {
namespace {

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
  function = reinterpret_cast<F*>(dlsym(library, name));
}

std::atomic<const Runtime*> g_runtime{nullptr};
std::atomic<bool> g_forked{false};

// A runtime keeps a team for each thread that starts regions. One of its workers stands for all.
struct Team {
  bool known;
  clockid_t clock;  // of the processor time that the worker has had
  int64_t seen;     // on that clock
};
thread_local Team t_team{};

// Whatever name the runtime has been given, PyTorch's library leads to it.
const Runtime* find_runtime() {
  if (const Runtime* found = g_runtime.load()) return found;
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return nullptr;
  Runtime runtime;
  look_up(library, "GOMP_parallel", runtime.parallel);
  look_up(library, "omp_get_level", runtime.level);
  look_up(library, "omp_get_max_threads", runtime.max_threads);
  look_up(library, "omp_get_thread_num", runtime.thread);
  if (runtime) {
    const Runtime* none = nullptr;
    const Runtime* mine = new Runtime(runtime);
    if (!g_runtime.compare_exchange_strong(none, mine)) delete mine;
  }
  return g_runtime.load();  // the library stays open: it must not go before us
}

bool nanoseconds(clockid_t clock, int64_t* result) {
  timespec t;
  if (clock_gettime(clock, &t) != 0) return false;
  *result = int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
  return true;
}

// A thread spins if its processor time goes on while we look.
bool spins(Team& team) {
  int64_t now = 0;
  for (int looks = 0; looks < 2; ++looks) {
    team.known = nanoseconds(team.clock, &now);  // unless it has ended
    if (!team.known || now == team.seen) return false;
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
  const unsigned theirs = float_state();
  job.work(job.data, job.runtime.thread());
  set_float_state(theirs);
}

}  // namespace

void meet_borrowed_threads(int threads) {
  if (t_team.known || g_forked) return;
  const Runtime* runtime = find_runtime();
  if (!runtime || !runtime->offers(threads)) return;
  Team team{};
  const Work look = [](void* data, int worker) {
    Team& found = *static_cast<Team*>(data);
    if (worker == 1) found.known = pthread_getcpuclockid(pthread_self(), &found.clock) == 0;
  };
  Job job{*runtime, look, &team};
  runtime->parallel(run_job, &job, 0, 0);
  t_team = team;
}

bool run_on_borrowed_threads(int threads, Work work, void* data) {
  if (!t_team.known || g_forked) return false;
  const Runtime& runtime = *g_runtime.load();
  if (!runtime.offers(threads) || !spins(t_team)) return false;
  Job job{runtime, work, data};
  runtime.parallel(run_job, &job, 0, 0);
  return true;
}

void forget_borrowed_threads() { g_forked = true; }

}  // namespace multihead

#else

namespace multihead {

void meet_borrowed_threads(int) {}
bool run_on_borrowed_threads(int, Work, void*) { return false; }
void forget_borrowed_threads() {}

}  // namespace multihead

#endif
