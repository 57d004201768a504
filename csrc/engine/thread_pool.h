// The engine's own threads. A region is a list of phases; each phase is a number of independent
// tasks, and a phase begins when all tasks of the one before are done. Workers spin for a while
// after a region, then sleep; the caller starts at once and waits only for tasks that a worker
// has begun. Regions of several callers: the first gets the workers, the others run alone. Where
// the workers of another runtime spin on the cores, they do the work instead of ours: ThreadSource.
// A runtime that calls us may lend its threads: lent_threads.h.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace multihead {

struct Phase {
  int64_t tasks;
  std::function<void(int64_t task, int worker)> run;  // must not throw
  // The first task of each sequence, and after them the number of tasks; empty where tasks are
  // not in the order of sequences, or reach beyond one.
  std::vector<int64_t> begin = {};
};

// At first MULTIHEAD_NUM_THREADS, or else the CPUs that the process may use, at most
// OMP_NUM_THREADS. The first use throws std::invalid_argument where the former makes no sense.
int num_threads();
void set_num_threads(int threads);  // at least 1

// How many threads take part in about so many multiplications: all of them, at most `most` if that
// is not 0; or the caller alone, who is done with little before another one has come to help.
int workers_for(int64_t multiplications, int most);
void set_little(int64_t multiplications);  // 2^20 at first

using Work = void (*)(void* data, int worker);

// Another runtime's threads, which spin on the cores for a while after its own regions.
struct ThreadSource {
  // Gets to know the threads that it has for the calling one. Called when our workers wanted for
  // cores. `threads` as below.
  void (*meet)(int threads);
  // Runs work(data, worker) for each worker on the spinning threads, the caller among them as
  // worker 0, and returns true; false if no threads spin, or not as many as `threads`.
  bool (*run)(int threads, Work work, void* data);
};

// Null: none, as at first, and in a forked child for good.
void set_thread_source(const ThreadSource* source);

// Makes one phase of all from `first` on: nothing in them waits for another.
void join_phases(std::vector<Phase>& phases, size_t first);

// Makes one phase of all from `first` on, with a task for each sequence: it goes through them all.
// Returns false, and changes nothing, if one of them is not in the order of sequences.
bool fuse_phases(std::vector<Phase>& phases, size_t first);

// What a thread does before its first task of a region, and after its last; null: nothing.
struct WorkerState {
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
};

// Runs phases on up to `workers` threads, the caller among them as worker 0. Throws Interrupted if
// they were ended early.
void run_phases(const std::vector<Phase>& phases, int workers, WorkerState state = {});

}  // namespace multihead
