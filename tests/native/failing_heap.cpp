// Preloaded, lets one allocation of the library's or the extension's fail: the n-th after arm(n),
// from the C++ heap or of aligned memory. Python's and PyTorch's own are left alone.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<long> g_left{-1};  // allocations until one fails; negative: none does
std::atomic<bool> g_failed{false};

bool ours(void* caller) {
  Dl_info info;
  if (!dladdr(caller, &info) || !info.dli_fname) return false;
  return std::strstr(info.dli_fname, "libmultihead") || std::strstr(info.dli_fname, "_native.");
}

bool fails(void* caller) {
  if (g_left.load() < 0 || !ours(caller)) return false;
  if (g_left.fetch_sub(1) != 0) return false;
  g_failed = true;
  return true;
}

}  // namespace

extern "C" {

void failing_heap_arm(long n) {
  g_failed = false;
  g_left = n;
}

// Whether an allocation failed; none does any more.
int failing_heap_disarm() {
  g_left = -1;
  return g_failed ? 1 : 0;
}

void* aligned_alloc(size_t align, size_t bytes) {
  static void* (*const next)(size_t, size_t) =
      reinterpret_cast<void* (*)(size_t, size_t)>(dlsym(RTLD_NEXT, "aligned_alloc"));
  return fails(__builtin_return_address(0)) ? nullptr : next(align, bytes);
}

int posix_memalign(void** data, size_t align, size_t bytes) {
  static int (*const next)(void**, size_t, size_t) =
      reinterpret_cast<int (*)(void**, size_t, size_t)>(dlsym(RTLD_NEXT, "posix_memalign"));
  return fails(__builtin_return_address(0)) ? 12 : next(data, align, bytes);
}

}  // extern "C"

void* operator new(size_t bytes) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  if (void* data = std::malloc(bytes ? bytes : 1)) return data;
  throw std::bad_alloc();
}
void* operator new[](size_t bytes) {
  if (fails(__builtin_return_address(0))) throw std::bad_alloc();
  if (void* data = std::malloc(bytes ? bytes : 1)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete[](void* data, size_t) noexcept { std::free(data); }
