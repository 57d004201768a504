#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "../platform/cpu.h"
#include "../platform/threads.h"
#include "interruption.h"
#include "lent_threads.h"

namespace multihead {
namespace {

using Clock = std::chrono::steady_clock;
using platform::pause;

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kWaking = std::chrono::microseconds(100);  // what it takes at most, on a free core
constexpr auto kShare = std::chrono::microseconds(20);    // of tasks that are taken together
constexpr int64_t kMostShared = 1 << 20;
constexpr int kMaxThreads = 1024;

struct alignas(64) Progress {
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
};

// Of each phase; in place for a usual number of them.
class ProgressList {
 public:
  explicit ProgressList(size_t n) : more_(n > kUsual ? new Progress[n] : nullptr) {}
  Progress& operator[](size_t i) { return more_ ? more_[i] : usual_[i]; }

 private:
  static constexpr size_t kUsual = 16;
  Progress usual_[kUsual];
  std::unique_ptr<Progress[]> more_;
};

// For as long as a thread is in the state that its tasks need. A call within a call, see WorksFor,
// leaves it to the outer one again.
class Entered {
 public:
  explicit Entered(WorkerState state) : state_(state), outer_(t_inner) {
    t_inner = this;
    if (state_.enter) state_.enter();
  }
  ~Entered() {
    if (state_.leave) state_.leave();
    t_inner = outer_;
    if (outer_ && outer_->state_.enter) outer_->state_.enter();
  }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  static thread_local const Entered* t_inner;
  const WorkerState state_;
  const Entered* const outer_;
};
thread_local const Entered* Entered::t_inner = nullptr;

std::atomic<int> g_forks{0};  // that led to this process, since the pool was made

struct Region {
  const std::vector<Phase>& phases;
  ProgressList progress;
  int workers;
  WorkerState state;
  unsigned float_state;
  Clock::time_point woken{};    // when the workers were, if they slept
  std::atomic<int> on_time{0};  // of those, the ones that had a core ever since
  Interruption interruption{};
  const int forks = g_forks.load();

  // Whether a poll has forked, and this is the child: the other workers are not in it.
  bool orphaned() const { return g_forks.load() != forks; }

  void help(int worker) {
    if (worker == 0) return work(0);
    if (worker >= workers) return;
    platform::set_float_state(float_state);
    if (woken == Clock::time_point()) return work(worker);
    const auto before = platform::processor_time();
    work(worker);
    if (Clock::now() - woken - (platform::processor_time() - before) < kWaking)
      on_time.fetch_add(1);
  }

  // Whether workers wanted a core and did not get one.
  bool starved() const {
    return woken != Clock::time_point() && on_time.load() < workers - 1 &&
           Clock::now() - woken > kWaking;
  }

 private:
  void work(int worker) {
    const WorksFor call(interruption, worker == 0);
    const Entered entered(state);
    run_tasks(worker);
  }

  struct Share {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };

  // Take the next tasks of a phase; in the end few, so that all workers end together.
  Share take(Progress& at, int64_t tasks, int64_t most) const {
    int64_t begin = at.next.load(std::memory_order_relaxed), end;
    do {
      const int64_t left = std::max<int64_t>(tasks - begin, 0);
      end = begin + std::min(left, std::clamp<int64_t>(left / (4 * workers), 1, most));
    } while (begin < end && !at.next.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return {begin, end};
  }

  // Tasks that are as short as what it costs to take one are taken together.
  void run_shares(const Phase& phase, Progress& at, int worker) {
    int64_t most = 1;
    auto begin = Clock::now();
    for (Share share; (share = take(at, phase.tasks, most)).size() > 0;) {
      for (int64_t task = share.begin; task < share.end; ++task)
        if (!ending()) phase.run(task, worker);
      at.done.fetch_add(share.size(), std::memory_order_release);
      const auto now = Clock::now();
      if (now - begin < kShare) most = std::min<int64_t>(2 * most, kMostShared);
      if (now - begin > 2 * kShare) most = std::max<int64_t>(most / 2, 1);
      begin = now;
    }
  }

  void run_tasks(int worker) {
    for (size_t i = 0; i < phases.size(); ++i) {
      const Phase& phase = phases[i];
      Progress& at = progress[i];
      run_shares(phase, at, worker);
      for (int spins = 0; at.done.load(std::memory_order_acquire) < phase.tasks; ++spins) {
        pause();
        if (spins <= 4096) continue;
        std::this_thread::yield();
        ending();  // who waits still asks
        if (orphaned()) return interruption.tell();
      }
    }
  }
};

std::atomic<const ThreadSource*> g_source{nullptr};
std::atomic<int64_t> g_little{1 << 20};

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {}

  int threads() const { return threads_.load(); }
  void set_threads(int n) { threads_ = std::clamp(n, 1, kMaxThreads); }

  void run(const std::vector<Phase>& phases, int workers, WorkerState state) {
    Region region{phases, ProgressList(phases.size()), workers, state, platform::float_state()};
    share(region);
    if (region.interruption.told()) throw Interrupted();
  }

 private:
  void share(Region& region) {
    const Work help = [](void* data, int worker) { static_cast<Region*>(data)->help(worker); };
    const LentThreads* lent = borrowed_threads();
    if (lent && region.workers > 1) return run_on(*lent, region.workers, help, &region);
    std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
    if (region.workers <= 1 || !lock.try_lock()) return region.help(0);
    const int threads = threads_;
    const ThreadSource* source = g_source.load();
    if (source && source->run(threads, help, &region)) return;
    while (started_ < region.workers - 1) start(++started_);
    if (asleep_.load() > 0) region.woken = Clock::now();
    region_.store(&region);
    generation_.fetch_add(1);
    if (asleep_.load() > 0) generation_.notify_all();
    region.help(0);
    region_.store(nullptr);
    while (inside_.load() > 0 && !region.orphaned()) pause();
    if (source && region.starved()) source->meet(threads);
  }

  void start(int worker) {
    try {
      std::thread(&Pool::loop, this, worker).detach();
    } catch (const std::exception&) {  // no memory, no thread: the caller does this worker's share
    }
  }

  void loop(int worker) {
    for (uint32_t seen = 0;;) {
      seen = wait_for_change(seen);
      inside_.fetch_add(1);
      if (Region* region = region_.load()) region->help(worker);
      inside_.fetch_sub(1);
    }
  }

  uint32_t wait_for_change(uint32_t seen) {
    const auto end = Clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (const uint32_t now = generation_.load(); now != seen) return now;
        pause();
      }
    } while (Clock::now() < end);
    asleep_.fetch_add(1);
    generation_.wait(seen);
    asleep_.fetch_sub(1);
    return generation_.load();
  }

  std::atomic<int> threads_;
  std::mutex busy_;
  int started_ = 0;  // guarded by busy_
  std::atomic<Region*> region_{nullptr};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> inside_{0}, asleep_{0};
};

int default_threads() {
  const char* wanted = std::getenv("MULTIHEAD_NUM_THREADS");
  if (wanted && *wanted) {
    char* end = nullptr;
    const auto n = std::strtoll(wanted, &end, 10);
    if (*end || n < 1 || n > kMaxThreads)
      throw std::invalid_argument("MULTIHEAD_NUM_THREADS: expected an integer from 1 to " +
                                  std::to_string(kMaxThreads) + ", got '" + wanted + "'");
    return int(n);
  }
  // Whoever starts several processes tells each its share so; of a list, the first is meant.
  const char* share = std::getenv("OMP_NUM_THREADS");
  const int cpus = platform::usable_cpus(), n = share ? std::atoi(share) : 0;
  return n > 0 ? std::min(n, cpus) : cpus;
}

// Never destroyed: sleeping workers may outlive static destructors. A forked child has none of
// the threads, nor has another's runtime, so it begins with a pool of its own and nothing else. No
// lock is held while the pool is made: a child that another thread forks then would find it taken.
std::atomic<Pool*> g_pool{nullptr};

void begin_again() {
  g_pool = new Pool(g_pool.load()->threads());
  g_forks.fetch_add(1);
  g_source = nullptr;
}

Pool& pool() {
  if (Pool* made = g_pool.load()) return *made;
  Pool *first = nullptr, *made = new Pool(default_threads());
  if (g_pool.compare_exchange_strong(first, made)) {
    platform::on_fork(begin_again);
    return *made;
  }
  delete made;
  return *first;
}

}  // namespace

void join_phases(std::vector<Phase>& phases, size_t first) {
  if (phases.size() < first + 2) return;
  std::vector<Phase> parts(std::make_move_iterator(phases.begin() + int64_t(first)),
                           std::make_move_iterator(phases.end()));
  phases.resize(first);
  int64_t tasks = 0;
  for (const Phase& part : parts) tasks += part.tasks;
  auto run = [parts = std::move(parts)](int64_t task, int worker) {
    size_t i = 0;
    for (; task >= parts[i].tasks; ++i) task -= parts[i].tasks;
    parts[i].run(task, worker);
  };
  phases.push_back({tasks, std::move(run)});
}

bool fuse_phases(std::vector<Phase>& phases, size_t first) {
  if (phases.size() < first + 2) return true;
  for (size_t i = first; i < phases.size(); ++i)
    if (phases[i].begin.empty()) return false;
  std::vector<Phase> parts(std::make_move_iterator(phases.begin() + int64_t(first)),
                           std::make_move_iterator(phases.end()));
  phases.resize(first);
  const int64_t sequences = int64_t(parts[0].begin.size()) - 1;
  auto run = [parts = std::move(parts)](int64_t sequence, int worker) {
    for (const Phase& part : parts)
      for (int64_t t = part.begin[size_t(sequence)]; t < part.begin[size_t(sequence) + 1]; ++t)
        if (!ending()) part.run(t, worker);
  };
  phases.push_back({sequences, std::move(run)});
  return true;
}

int num_threads() { return pool().threads(); }

int workers_for(int64_t multiplications, int most) {
  if (multiplications < g_little) return 1;
  const int workers = most > 0 ? most : num_threads();
  const LentThreads* lent = borrowed_threads();
  return lent ? std::min(workers, lent->threads) : workers;
}

void set_little(int64_t multiplications) { g_little = multiplications; }

void set_num_threads(int threads) { pool().set_threads(threads); }

void set_thread_source(const ThreadSource* source) {
  pool();  // which hears of forks from now on
  if (g_forks == 0) g_source = source;
}

void run_phases(const std::vector<Phase>& phases, int workers, WorkerState state) {
  pool().run(phases, workers, state);
}

}  // namespace multihead
