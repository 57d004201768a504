#include "arena.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace multihead {

constexpr size_t kHuge = size_t(2) << 20;

Block64::Block64(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const size_t align = bytes >= 2 * kHuge ? kHuge : kAlign;
  const size_t rounded = (bytes + align - 1) / align * align;
  data_ = std::aligned_alloc(align, rounded);
  if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (align == kHuge) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
}

Block64::~Block64() { std::free(data_); }

}  // namespace multihead
