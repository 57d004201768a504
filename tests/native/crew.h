// A runtime's threads as they are lent to the engine: some of them come late, some after the end,
// and for some there is no memory.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "../../csrc/engine/lent_threads.h"

namespace multihead::digest {

class Crew : public LentThreads {
 public:
  explicit Crew(int count) {
    threads = count;
    schedule = [](const LentThreads& from, void (*task)(void*), void* data) {
      const Crew& crew = static_cast<const Crew&>(from);
      if (++crew.asked_ % 7 == 0) throw std::bad_alloc();
      crew.add(task, data);
    };
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { loop(); });
    borrow_threads(this);
  }
  ~Crew() {
    borrow_threads(nullptr);
    add(nullptr, nullptr);
    for (std::thread& worker : workers_) worker.join();
  }
  Crew(const Crew&) = delete;

  bool helped() const { return done_.load() > 0; }

 private:
  using Task = std::pair<void (*)(void*), void*>;

  void add(void (*task)(void*), void* data) const {
    const std::lock_guard<std::mutex> lock(busy_);
    tasks_.emplace_back(task, data);
    added_.notify_all();
  }

  Task next() {
    std::unique_lock<std::mutex> lock(busy_);
    added_.wait(lock, [this] { return !tasks_.empty(); });
    const Task task = tasks_.front();
    if (task.first) tasks_.pop_front();  // the end is for all
    return task;
  }

  void loop() {
    int done = 0;
    for (Task task; (task = next()).first; ++done) {
      if (done % 5 == 4) std::this_thread::sleep_for(std::chrono::microseconds(100));
      task.first(task.second);
      done_.fetch_add(1);
    }
  }

  mutable std::mutex busy_;
  mutable std::condition_variable added_;
  mutable std::deque<Task> tasks_;
  mutable int64_t asked_ = 0;  // by the one who borrows
  std::atomic<int64_t> done_{0};
  std::vector<std::thread> workers_;
};

}  // namespace multihead::digest
