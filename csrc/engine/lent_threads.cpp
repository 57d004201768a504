#include "lent_threads.h"

#include <atomic>
#include <new>

#include "../platform/cpu.h"
#include "../platform/threads.h"

namespace multihead {
namespace {

thread_local const LentThreads* t_threads = nullptr;

// The work of one region. A task may be begun after the region's end, and finds nothing to do then.
class Loan {
 public:
  Loan(int workers, Work work, void* data) : work_(work), data_(data), users_(workers) {}

  static void help(void* loan) { static_cast<Loan*>(loan)->help(); }

  // Of so many helpers none comes.
  void do_without(int helpers) { users_.fetch_sub(helpers); }

  // Whoever has begun ends; nobody else begins.
  void end() {
    ended_.store(true);
    while (inside_.load() > 0) platform::pause();
    leave();
  }

 private:
  ~Loan() = default;

  void help() {
    inside_.fetch_add(1);
    if (!ended_.load()) {
      const unsigned theirs = platform::float_state();
      work_(data_, begun_.fetch_add(1) + 1);
      platform::set_float_state(theirs);
    }
    inside_.fetch_sub(1);
    leave();
  }
  void leave() {
    if (users_.fetch_sub(1) == 1) delete this;
  }

  const Work work_;
  void* const data_;
  std::atomic<int> users_, begun_{0}, inside_{0};
  std::atomic<bool> ended_{false};
};

}  // namespace

void borrow_threads(const LentThreads* threads) { t_threads = threads; }

const LentThreads* borrowed_threads() { return t_threads; }

void run_on(const LentThreads& threads, int workers, Work work, void* data) {
  Loan* const loan = new Loan(workers, work, data);
  int asked = 1;
  try {
    for (; asked < workers; ++asked) threads.schedule(threads, Loan::help, loan);
  } catch (const std::bad_alloc&) {  // no memory, no help: who is here does all
    loan->do_without(workers - asked);
  }
  work(data, 0);
  loan->end();
}

}  // namespace multihead
