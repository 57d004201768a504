#include "layer_cache.h"

#include <stdexcept>
#include <string>

#include "engine.h"

namespace multihead::xla {
namespace {

struct alignas(kAlign) Header {
  uint64_t magic;
  int64_t sequences;
};
constexpr uint64_t kMagic = 0x6D68786C61796572ull;

Header* header_of(const Operand& buffer) {
  const auto at = reinterpret_cast<uintptr_t>(buffer.view.data);
  if (at % kAlign != 0) throw std::runtime_error("cache: expected 64-byte aligned memory");
  if (buffer.elements < int64_t(sizeof(Header)))
    throw std::invalid_argument("cache: expected a header, got " + std::to_string(buffer.elements) +
                                " bytes");
  return buffer.view.as<Header>();
}

// Nothing is kept of no sequences.
CacheMemory empty() {
  return [](size_t) -> void* {
    alignas(kAlign) static char nothing[kAlign];
    return nothing;
  };
}

CacheMemory after(Header* header, int64_t room) {
  return [=](size_t bytes) -> void* {
    if (int64_t(bytes) > room)
      throw std::invalid_argument("cache: expected " + std::to_string(bytes) + " bytes, got " +
                                  std::to_string(room) +
                                  " (traced with other kernels: jax.clear_caches())");
    return header + 1;
  };
}

}  // namespace

CacheMemory new_cache(const Operand& buffer, int64_t sequences) {
  if (sequences == 0) return empty();
  Header* const header = header_of(buffer);
  *header = {kMagic, sequences};
  return after(header, buffer.elements - int64_t(sizeof(Header)));
}

CacheMemory kept_cache(const Operand& buffer, int64_t sequences) {
  if (sequences == 0) return empty();
  Header* const header = header_of(buffer);
  if (header->magic != kMagic || header->sequences != sequences)
    throw std::invalid_argument("cache: expected that of a forward of " +
                                std::to_string(sequences) + " sequences, got another");
  return after(header, buffer.elements - int64_t(sizeof(Header)));
}

}  // namespace multihead::xla

int64_t multihead_layer_cache_bytes(const multihead::xla::LayerSizes* sizes) {
  using namespace multihead::xla;
  using namespace multihead;
  AttentionSpec spec;
  spec.dtype = DType(sizes->dtype);
  spec.heads = {.count = sizes->heads,
                .key_count = sizes->key_heads,
                .dim = sizes->head_dim,
                .value_dim = sizes->head_dim};
  spec.shape.batch = 1;
  spec.shape.queries = sizes->queries;
  spec.shape.keys = sizes->keys;
  spec.bias_key = sizes->bias_key != 0;
  spec.zero_row = sizes->zero_row != 0;
  size_t bytes = 0;
  const faces::Outcome outcome = engine().layer_cache_bytes(spec, &bytes);
  return outcome.status == faces::Status::Done ? int64_t(bytes + sizeof(Header)) : -1;
}
