#include "engine.h"

#include <stdexcept>

namespace multihead::xla {

const EngineTable& engine() {
  static const EngineTable* const table = multihead_private_table();
  if (table->version != kTableVersion)
    throw std::runtime_error("libmultihead_xla and libmultihead: expected those of one build");
  return *table;
}

ffi::Error error_of(const faces::Outcome& outcome) {
  switch (outcome.status) {
    case faces::Status::Done:
      return ffi::Error::Success();
    case faces::Status::OutOfMemory:
      return {ffi::ErrorCode::kResourceExhausted, outcome.why};
    case faces::Status::WrongArgument:
      return {ffi::ErrorCode::kInvalidArgument, outcome.why};
    case faces::Status::Interrupted:
      return {ffi::ErrorCode::kCancelled, outcome.why};
    case faces::Status::Failed:
      break;
  }
  return {ffi::ErrorCode::kInternal, outcome.why};
}

}  // namespace multihead::xla

// Of XLA's interface: a runtime takes handlers of its own version and of earlier ones.
extern "C" MULTIHEAD_EXPORT int multihead_xla_version() {
  return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR;
}
