// XLA's header, which comes with jaxlib.
#pragma once

#include <xla/ffi/api/ffi.h>

namespace multihead::xla {

namespace ffi = ::xla::ffi;

}  // namespace multihead::xla
