// Nothing is thrown out of the library: exceptions become a status, and a reason for the caller.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "../engine/interruption.h"

namespace multihead::faces {

enum class Status : int { Done, OutOfMemory, WrongArgument, Interrupted, Failed };

// Of the calling thread, until its next call.
struct Outcome {
  Status status = Status::Done;
  const char* why = "";
};

// `describe` says for what there was no memory, if it is called.
template <class F, class Describe>
Outcome guarded(F f, Describe describe) noexcept {
  thread_local std::string reason;
  const auto keep = [](Status status, const char* why) noexcept -> Outcome {
    try {
      reason = why;
      return {status, reason.c_str()};
    } catch (...) {  // no room for the reason
      return {Status::OutOfMemory, "out of memory"};
    }
  };
  const auto out_of_memory = [&]() noexcept -> Outcome {
    try {
      reason = "out of memory" + describe();
      return {Status::OutOfMemory, reason.c_str()};
    } catch (...) {
      return {Status::OutOfMemory, "out of memory"};
    }
  };
  try {
    f();
    return {};
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::length_error&) {  // a list longer than any memory
    return out_of_memory();
  } catch (const Interrupted&) {
    return {Status::Interrupted, "interrupted"};
  } catch (const std::invalid_argument& e) {
    return keep(Status::WrongArgument, e.what());
  } catch (const std::exception& e) {
    return keep(Status::Failed, e.what());
  } catch (...) {
    return {Status::Failed, "an unknown failure"};
  }
}

template <class F>
Outcome guarded(F f) noexcept {
  return guarded(f, [] { return std::string(); });
}

}  // namespace multihead::faces
