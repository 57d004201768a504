// Runs layers of several shapes, forward and backward, and prints a digest of all results in float
// and one in double: kernel sets with FMA print the same, on any architecture. MULTIHEAD_ISA names
// the set.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/engine/cpu.h"
#include "../../csrc/engine/layer.h"
#include "../../csrc/engine/thread_pool.h"

using namespace multihead;

namespace {

// Numbers in [-1, 1) from a 64-bit generator: integers only, so the same everywhere.
struct Numbers {
  uint64_t state = 88172645463325252ull;
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  }
  template <class T>
  std::vector<T> floats(int64_t n) {
    std::vector<T> x;
    for (int64_t i = 0; i < n; ++i) x.push_back(T(int64_t(next() >> 44)) / T(1 << 19) - T(1));
    return x;
  }
};

uint64_t hash_of(const void* data, size_t bytes, uint64_t hash) {
  const unsigned char* p = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 1099511628211ull;
  return hash;
}

template <class T>
View view(const std::vector<T>& x, std::initializer_list<int64_t> sizes) {
  View v;
  v.data = const_cast<T*>(x.data());
  v.dtype = sizeof(T) == 1 ? DType::Bool : sizeof(T) == 4 ? DType::Float32 : DType::Float64;
  for (int64_t s : sizes) v.size[v.rank++] = s;
  int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) v.stride[i] = stride, stride *= v.size[i];
  return v;
}

template <class T>
uint64_t run(Numbers& numbers, int64_t N, int64_t L, int64_t S, int64_t H, int64_t D, bool causal,
             bool masked, double p, uint64_t hash) {
  const int64_t E = H * D;
  const auto make = [&](int64_t n) { return numbers.floats<T>(n); };
  const auto q = make(N * L * E), k = make(N * S * E), v = make(N * S * E), d = make(N * L * E);
  std::vector<T> w[4], b[4], dw[4], db[4];
  for (int i = 0; i < 4; ++i) {
    w[i] = make(E * E), b[i] = make(E);
    dw[i].assign(size_t(E * E), T(0)), db[i].assign(size_t(E), T(0));
  }
  std::vector<uint8_t> padding, mask;
  for (int64_t i = 0; i < N * S; ++i) padding.push_back(numbers.next() >> 62 == 0);
  for (int64_t i = 0; i < L * S; ++i) mask.push_back(numbers.next() >> 62 == 0);

  LayerCall call;
  call.dtype = sizeof(T) == 4 ? DType::Float32 : DType::Float64;
  const auto parameters = [&](std::vector<T>* weights, std::vector<T>* biases) {
    Parameters r;
    HeadWeights* to[] = {&r.query, &r.key, &r.value};
    for (int i = 0; i < 3; ++i) *to[i] = {view(weights[i], {H, D, E}), view(biases[i], {H, D})};
    r.out = {view(weights[3], {H, D, E}), view(biases[3], {E})};
    return r;
  };
  call.parameters = parameters(w, b);
  call.zero_row = masked;
  call.query = view(q, {N, L, E});
  call.key = view(k, {N, S, E});
  call.value = view(v, {N, S, E});
  call.shape.batch = N, call.shape.queries = L, call.shape.keys = S;
  if (masked) {
    call.shape.key_padding = view(padding, {N, S});
    call.attn_mask = view(mask, {1, 1, L, S});
    call.attn_mask.stride[0] = call.attn_mask.stride[1] = 0;
    call.attn_mask.size[0] = N, call.attn_mask.size[1] = H;
  }
  call.causal = causal;
  call.dropout = {p, 42, 7};

  const int64_t columns = S + int64_t(masked);
  std::vector<T> out(size_t(N * L * E)), weights(size_t(N * L * columns));
  WeightsView shown{view(weights, {N, 1, L, columns}), 1};
  call.shape.weight_heads = 1;
  std::vector<char> cache(cache_bytes(call) + 64);
  void* kept = cache.data() + (64 - reinterpret_cast<uintptr_t>(cache.data()) % 64);
  layer_forward(call, view(out, {N, L, E}), shown, kept);
  std::vector<T> dq(q.size()), dk(k.size()), dv(v.size());
  LayerGradients g;
  g.query = view(dq, {N, L, E}), g.key = view(dk, {N, S, E}), g.value = view(dv, {N, S, E});
  g.parameters = parameters(dw, db);
  layer_backward(call, kept, view(d, {N, L, E}), WeightsView{}, g);
  const auto add = [&](const std::vector<T>& x) {
    hash = hash_of(x.data(), x.size() * sizeof(T), hash);
  };
  add(out), add(weights), add(dq), add(dk), add(dv);
  for (int i = 0; i < 4; ++i) add(dw[i]), add(db[i]);
  return hash;
}

template <class T>
uint64_t all() {
  Numbers numbers;
  uint64_t hash = 14695981039346656037ull;
  hash = run<T>(numbers, 2, 70, 70, 2, 16, false, false, 0.0, hash);
  hash = run<T>(numbers, 1, 5, 300, 3, 7, false, true, 0.1, hash);
  hash = run<T>(numbers, 2, 130, 129, 1, 33, true, true, 0.5, hash);
  hash = run<T>(numbers, 5, 210, 210, 2, 20, false, false, 0.0, hash);  // weights in panels
  hash = run<T>(numbers, 9, 20, 20, 2, 16, true, false, 0.1, hash);     // a sequence at a time
  hash = run<T>(numbers, 3, 1, 65, 2, 64, true, false, 0.2, hash);
  return hash;
}

}  // namespace

int main() {
  set_num_threads(2);
  std::printf("%016llx %016llx\n", static_cast<unsigned long long>(all<float>()),
              static_cast<unsigned long long>(all<double>()));
}
