#include "interruption.h"

namespace multihead {
namespace {

constexpr auto kEvery = std::chrono::milliseconds(20);
constexpr unsigned kLooks = 4;  // at the clock: one in so many

thread_local Poll t_poll = nullptr;
thread_local Interruption* t_call = nullptr;
thread_local bool t_asks = false;

}  // namespace

void set_poll(Poll poll) { t_poll = poll; }

Interruption::Interruption() : poll_(t_poll) {}

void Interruption::ask() {
  if (!poll_ || ++looks_ % kLooks) return;
  const auto now = std::chrono::steady_clock::now();
  if (next_ == std::chrono::steady_clock::time_point()) next_ = now + kEvery;
  if (now < next_) return;
  next_ = now + kEvery;
  if (poll_()) told_.store(true, std::memory_order_relaxed);
}

WorksFor::WorksFor(Interruption& call, bool asks) {
  t_call = &call;
  t_asks = asks;
}

WorksFor::~WorksFor() { t_call = nullptr; }

bool ending() {
  if (!t_call) return false;
  if (t_asks && !t_call->told()) t_call->ask();
  return t_call->told();
}

}  // namespace multihead
