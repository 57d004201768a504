// Calls of XLA whose cost is known: nothing at all, or so much work on the calling thread alone.
#include <xla/ffi/api/ffi.h>

#include <cstring>

namespace ffi = xla::ffi;

namespace {

ffi::Error nothing(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

// Copies x, and multiplies and adds `rounds` times.
ffi::Error busy(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> out, int64_t rounds) {
  std::memcpy(out->untyped_data(), x.untyped_data(), x.size_bytes());
  double sum = 1;
  for (int64_t i = 0; i < rounds; ++i) sum = sum * 0.5 + 0.25;
  volatile double sink = sum;
  (void)sink;
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(empty_call, nothing,
                              ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    busy_call, busy,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<int64_t>(
        "rounds"));
#pragma GCC visibility pop
