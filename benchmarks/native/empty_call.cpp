// A call of XLA that does nothing: what every call costs.
#include <xla/ffi/api/ffi.h>

namespace ffi = xla::ffi;

namespace {

ffi::Error nothing(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(empty_call, nothing,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets());
#pragma GCC visibility pop
