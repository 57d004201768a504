// Preloaded, lets one allocation of a call fail: the n-th after arm(n), of the library's or the
// extension's, from the C++ heap or of aligned memory; where `arrays` is set, of the memory of
// NumPy's arrays and PyTorch's tensors too. Python's own are left alone. Counts the library's and
// the extension's allocations that live, and refuses new threads where it is told to.
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t n, size_t bytes);
void* __libc_memalign(size_t align, size_t bytes);
void __libc_free(void* data);
}

namespace {

std::atomic<long> g_left{-1};  // allocations until one fails; negative: none does
std::atomic<bool> g_failed{false}, g_arrays{false}, g_counts{false}, g_refuses_threads{false};

enum class Whose { Others, Ours, Arrays };

// Where the libraries lie that count, as of the last time that something was armed.
struct Range {
  uintptr_t first, end;
  Whose of;
};
constexpr int kMostRanges = 64;
Range g_ranges[kMostRanges];
std::atomic<int> g_range_count{0};

int add_ranges(dl_phdr_info* info, size_t, void*) {
  const auto in = [&](const char* name) { return std::strstr(info->dlpi_name, name) != nullptr; };
  const bool ours = in("libmultihead") || in("_native.");
  if (!ours && !in("_multiarray_umath") && !in("libc10.")) return 0;
  for (int i = 0; i < info->dlpi_phnum && g_range_count < kMostRanges; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    const uintptr_t first = info->dlpi_addr + part.p_vaddr;
    g_ranges[g_range_count] = {first, first + part.p_memsz, ours ? Whose::Ours : Whose::Arrays};
    ++g_range_count;
  }
  return 0;
}

void find_libraries() {
  g_range_count = 0;
  dl_iterate_phdr(add_ranges, nullptr);
}

Whose whose(void* caller) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(caller);
  for (int i = 0; i < g_range_count; ++i)
    if (at >= g_ranges[i].first && at < g_ranges[i].end) return g_ranges[i].of;
  return Whose::Others;
}

// The addresses that live, in a table: none is freed by the time that it is full.
class Live {
 public:
  void add(void* data) {
    if (!data) return;
    const Lock lock(*this);
    for (size_t i = place(data);; i = (i + 1) % kMost) {
      if (at_[i] && at_[i] != kGone) continue;
      at_[i] = data;
      ++count_;
      return;
    }
  }
  void remove(void* data) {
    if (!data) return;
    const Lock lock(*this);
    for (size_t i = place(data), n = 0; at_[i] && n < kMost; i = (i + 1) % kMost, ++n) {
      if (at_[i] != data) continue;
      at_[i] = kGone;
      --count_;
      return;
    }
  }
  long count() const { return count_; }

 private:
  struct Lock {
    explicit Lock(Live& of) : live(of) {
      while (live.busy_.test_and_set(std::memory_order_acquire)) {
      }
    }
    ~Lock() { live.busy_.clear(std::memory_order_release); }
    Live& live;
  };
  static constexpr size_t kMost = size_t(1) << 18;
  static inline void* const kGone = reinterpret_cast<void*>(uintptr_t(1));
  static size_t place(void* data) {
    return size_t(reinterpret_cast<uintptr_t>(data) / 16 * 0x9E3779B97F4A7C15u >> 32) % kMost;
  }

  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::atomic<long> count_{0};
  void* at_[kMost] = {};
} g_live;

bool counts_down() {
  if (g_left.load() < 0 || g_left.fetch_sub(1) != 0) return false;
  g_failed = true;
  return true;
}

// Makes memory, or null where it is this allocation's turn to fail. Of NumPy and PyTorch that is
// the memory of elements, which is large: what else they need is their own affair.
enum class For { Objects, Elements };
template <class Make>
void* make_for(void* caller, For what, Make make) {
  if (g_left.load() < 0 && !g_counts) return make();
  const Whose of = whose(caller);
  if (of == Whose::Others) return make();
  if (of == Whose::Arrays && !(g_arrays && what == For::Elements)) return make();
  if (counts_down()) return nullptr;
  void* const data = make();
  if (of == Whose::Ours && g_counts) g_live.add(data);
  return data;
}

For kind_of(size_t bytes) { return bytes < 8192 ? For::Objects : For::Elements; }

void* make_new(void* caller, size_t bytes) {
  const auto make = [&] { return __libc_malloc(bytes ? bytes : 1); };
  void* const data = make_for(caller, For::Objects, make);
  if (!data) throw std::bad_alloc();
  return data;
}

void release(void* data) {
  if (g_counts) g_live.remove(data);
  __libc_free(data);
}

}  // namespace

extern "C" {

void failing_heap_arm(long n, int arrays) {
  find_libraries();
  g_failed = false;
  g_arrays = arrays != 0;
  g_left = n;
}

// Whether an allocation failed; none does any more.
int failing_heap_disarm() {
  g_left = -1;
  return g_failed ? 1 : 0;
}

// Counts from now on.
void failing_heap_count() {
  find_libraries();
  g_counts = true;
}
long failing_heap_live() { return g_live.count(); }

void failing_heap_refuse_threads(int refuse) { g_refuses_threads = refuse != 0; }

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const Create next = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return g_refuses_threads ? EAGAIN : next(thread, attributes, run, argument);
}

void* malloc(size_t bytes) {
  return make_for(__builtin_return_address(0), kind_of(bytes),
                  [&] { return __libc_malloc(bytes); });
}

void* calloc(size_t n, size_t bytes) {
  return make_for(__builtin_return_address(0), kind_of(n * bytes),
                  [&] { return __libc_calloc(n, bytes); });
}

void* aligned_alloc(size_t align, size_t bytes) {
  return make_for(__builtin_return_address(0), kind_of(bytes),
                  [&] { return __libc_memalign(align, bytes); });
}

int posix_memalign(void** data, size_t align, size_t bytes) {
  void* const made = make_for(__builtin_return_address(0), kind_of(bytes),
                              [&] { return __libc_memalign(align, bytes); });
  if (!made && bytes) return ENOMEM;
  *data = made;
  return 0;
}

void free(void* data) { release(data); }

}  // extern "C"

void* operator new(size_t bytes) { return make_new(__builtin_return_address(0), bytes); }
void* operator new[](size_t bytes) { return make_new(__builtin_return_address(0), bytes); }
void operator delete(void* data) noexcept { release(data); }
void operator delete[](void* data) noexcept { release(data); }
void operator delete(void* data, size_t) noexcept { release(data); }
void operator delete[](void* data, size_t) noexcept { release(data); }
