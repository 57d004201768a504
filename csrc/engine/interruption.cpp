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
  if (poll_()) tell();
}

WorksFor::WorksFor(Interruption& call, bool asks) : before_(t_call), asked_(t_asks) {
  t_call = &call;
  t_asks = asks;
}

WorksFor::~WorksFor() {
  t_call = before_;
  t_asks = asked_;
}

bool ending() {
  Interruption* const call = t_call;
  if (!call) return false;
  if (t_asks && !call->told()) call->ask();
  return call->told();
}

}  // namespace multihead
