// Runs random layers and attention, forward and backward, and prints a digest of all results for
// each kind and dtype: the lines of digests.txt that begin with FMA, on any architecture, or those
// of the baseline; then those that begin with the set's name, if it multiplies pairs of bfloat16,
// whose results it also holds against float32's. MULTIHEAD_ISA names the set.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/engine/functional.h"
#include "../../csrc/engine/kernel_sets.h"
#include "../../csrc/engine/layer.h"
#include "../../csrc/engine/thread_pool.h"
#include "crew.h"
#include "numbers.h"

using namespace multihead;
using namespace multihead::digest;

namespace {

// A layer's weights as the engine looks at them: (H, D, in), (H, D); the output's (H, Dv, E), (E).
template <class T>
struct Projections {
  Array<T> weight[4], bias[4], bias_k, bias_v;

  Parameters views() const {
    return {{weight[0].view, bias[0].view},
            {weight[1].view, bias[1].view},
            {weight[2].view, bias[2].view},
            bias_k.view,
            bias_v.view,
            {weight[3].view, bias[3].view}};
  }
};

// What a call of a layer is told; a mask has sizes 1 where it is shared.
struct Shape {
  int64_t N = 1, L = 1, S = 1, H = 1, D = 1, Dv = 1, E = 1, kdim = 1, vdim = 1;
  bool ragged = false, extra_key = false, zero_row = false, causal = false;
  int shared = 0;  // 2: key is value, 3: query too
  double dropout = 0;
  uint64_t seed = 0, counter = 0;
  int64_t weight_heads = 0;
  std::vector<int64_t> query_offsets, key_offsets;

  int64_t columns() const { return S + extra_key + zero_row; }
};

template <class T>
struct LayerProblem {
  Shape shape;
  Projections<T> parameters, gradients;
  Array<T> query, key, value, d_out, d_query, d_key, d_value, out, weights, d_weights;
  Array<uint8_t> bool_mask, bool_padding;
  Array<T> float_mask, float_padding, d_mask, d_padding;
  bool adds = false;
  DType computed = dtype_of<T>();

  std::vector<const Array<T>*> results() const {
    std::vector<const Array<T>*> all = {&out,       &weights,          &d_query,
                                        &d_key,     &d_value,          &d_mask,
                                        &d_padding, &gradients.bias_k, &gradients.bias_v};
    for (int i = 0; i < 4; ++i)
      all.push_back(&gradients.weight[i]), all.push_back(&gradients.bias[i]);
    return all;
  }
};

template <class T>
LayerCall layer_call(const LayerProblem<T>& p) {
  const Shape& s = p.shape;
  LayerCall call;
  call.parameters = p.parameters.views();
  call.query = s.shared == 3 ? p.key.view : p.query.view;
  call.key = p.key.view;
  call.value = s.shared ? p.key.view : p.value.view;
  AttentionSpec& spec = call.attention;
  spec.dtype = p.computed;
  spec.heads = {.count = s.H, .key_count = s.H, .dim = s.D, .value_dim = s.Dv};
  spec.shape.batch = s.N, spec.shape.queries = s.L, spec.shape.keys = s.S;
  if (s.ragged) {
    spec.shape.query_offsets = s.query_offsets.data();
    spec.shape.key_offsets = s.key_offsets.data();
  }
  spec.shape.key_padding = p.bool_padding.view ? p.bool_padding.view : p.float_padding.view;
  spec.bias_key = bool(call.parameters.bias_k);
  spec.zero_row = s.zero_row;
  spec.rules.scale = 1.0 / std::sqrt(double(s.D));
  spec.rules.mask = score_axes(p.bool_mask.view ? p.bool_mask.view : p.float_mask.view, spec);
  spec.rules.causal = s.causal;
  spec.rules.dropout = {s.dropout, s.seed, s.counter};
  return call;
}

template <class T>
void run_layer(LayerProblem<T>& p) {
  const Shape& s = p.shape;
  const LayerCall call = layer_call(p);
  std::vector<char> cache;
  const CacheMemory kept = [&](size_t bytes) {
    cache.resize(bytes + 64);
    return cache.data() + (64 - reinterpret_cast<uintptr_t>(cache.data()) % 64);
  };
  layer_forward(call, p.out.view, {p.weights.view, s.weight_heads}, kept);
  LayerGradients g;
  g.query = s.shared == 3 ? p.d_key.view : p.d_query.view;
  g.key = p.d_key.view;
  g.value = s.shared ? p.d_key.view : p.d_value.view;
  g.query_adds = g.key_adds = g.value_adds = p.adds;
  g.parameters = p.gradients.views();
  g.key_padding = p.d_padding.view;
  g.mask = p.d_mask.view;
  WeightsView d_weights;
  if (p.d_weights.view) d_weights = {p.d_weights.view, s.weight_heads};
  layer_backward(call, kept, p.d_out.view, d_weights, g);
}

// Ends the program where an array is not near another.
void hold(const Array<float>& found, const Array<float>& right, const char* kind, int call) {
  double error = 0, size = 0;
  int64_t n = 0;
  for (size_t i = 0; i < found.memory.size(); ++i) {
    const double x = double(found.memory[i]), y = double(right.memory[i]);
    if (std::isfinite(x) != std::isfinite(y)) error = std::numeric_limits<double>::infinity();
    if (!std::isfinite(x) || !std::isfinite(y)) continue;
    error += (x - y) * (x - y), size += y * y, ++n;
  }
  const double bound = 0.03 * (std::sqrt(size) + std::sqrt(double(n)));
  if (std::sqrt(error) <= bound) return;
  std::printf("%s %d: error %g, bound %g\n", kind, call, std::sqrt(error), bound);
  std::exit(1);
}

// A problem's results, and in another dtype, held against each other.
template <class P>
P run_in(DType computed, P p, void (*run)(P&), const char* kind, int call) {
  P right = p;
  p.computed = computed;
  run(p);
  if constexpr (std::is_same_v<decltype(p.out), Array<float>>) {
    if (computed != DType::BFloat16) return p;
    run(right);
    const auto found = p.results(), exact = right.results();
    for (size_t i = 0; i < found.size(); ++i) hold(*found[i], *exact[i], kind, call);
  }
  return p;
}

// Arrays for a shape; what else there is (biases, masks, weights) is drawn.
template <class T>
LayerProblem<T> layer_problem(Numbers& numbers, const Shape& shape) {
  LayerProblem<T> p;
  p.shape = shape;
  Shape& s = p.shape;
  const Sizes widths = {s.E, s.kdim, s.vdim, s.E}, dims = {s.D, s.D, s.Dv, s.Dv};
  const auto both = [&](Array<T>& to, Array<T>& gradient, const Sizes& sizes, T scale) {
    to = random<T>(numbers, sizes, scale), gradient = random<T>(numbers, sizes);
  };
  for (size_t i = 0; i < 4; ++i) {
    both(p.parameters.weight[i], p.gradients.weight[i], {s.H, dims[i], widths[i]}, T(0.375));
    const Sizes bias = i < 3 ? Sizes{s.H, dims[i]} : Sizes{s.E};
    if (numbers.percent(70)) both(p.parameters.bias[i], p.gradients.bias[i], bias, 1);
  }
  if (s.extra_key) {
    both(p.parameters.bias_k, p.gradients.bias_k, {s.H, s.D}, 1);
    both(p.parameters.bias_v, p.gradients.bias_v, {s.H, s.Dv}, 1);
  }
  const auto tokens = [&](const std::vector<int64_t>& offsets, int64_t length, int64_t width) {
    return random<T>(numbers, s.ragged ? Sizes{offsets.back(), width} : Sizes{s.N, length, width});
  };
  p.query = tokens(s.query_offsets, s.L, s.E), p.d_query = tokens(s.query_offsets, s.L, s.E);
  p.key = tokens(s.key_offsets, s.S, s.kdim), p.d_key = tokens(s.key_offsets, s.S, s.kdim);
  p.value = tokens(s.key_offsets, s.S, s.vdim), p.d_value = tokens(s.key_offsets, s.S, s.vdim);
  p.out = tokens(s.query_offsets, s.L, s.E), p.d_out = tokens(s.query_offsets, s.L, s.E);
  p.adds = numbers.percent(30);
  if (numbers.percent(50)) {
    Sizes sizes = {s.N, s.H, s.L, s.S};
    for (int64_t& n : sizes) n = numbers.percent(40) ? 1 : n;
    if (numbers.percent(50))
      p.bool_mask = mask<uint8_t>(numbers, sizes);
    else
      p.float_mask = mask<T>(numbers, sizes), p.d_mask = random<T>(numbers, sizes);
  }
  if (!s.ragged && numbers.percent(40)) {
    if (numbers.percent(50))
      p.bool_padding = mask<uint8_t>(numbers, {s.N, s.S});
    else
      p.float_padding = mask<T>(numbers, {s.N, s.S}), p.d_padding = random<T>(numbers, {s.N, s.S});
  }
  if (numbers.percent(50)) {
    s.weight_heads = numbers.percent(50) ? 1 : s.H;
    int64_t all = 0;
    for (int64_t n = 0; s.ragged && n < s.N; ++n)
      all += (s.query_offsets[size_t(n + 1)] - s.query_offsets[size_t(n)]) * s.weight_heads *
             (s.key_offsets[size_t(n + 1)] - s.key_offsets[size_t(n)] + s.columns() - s.S);
    const Sizes sizes = s.ragged ? Sizes{all} : Sizes{s.N, s.weight_heads, s.L, s.columns()};
    p.weights = random<T>(numbers, sizes, 1, !s.ragged);
    if (numbers.percent(60)) p.d_weights = random<T>(numbers, sizes, 1, !s.ragged);
  }
  return p;
}

// Mostly small, often across tiles, some long in keys, many in a batch, or empty.
void draw_lengths(Numbers& numbers, Shape& s) {
  const int64_t way = numbers.below(100);
  s.N = numbers.between(1, 3), s.L = numbers.between(1, 20), s.S = numbers.between(1, 20);
  if (way >= 62 && way < 80) {
    const int64_t edge = numbers.percent(70) ? 60 : 120;
    s.L = numbers.between(edge, edge + 10),
    s.S = numbers.percent(50) ? s.S : s.L + numbers.between(-5, 5);
    s.N = 1;
  } else if (way >= 80 && way < 87) {
    s.N = 1, s.L = numbers.between(1, 30), s.S = numbers.between(500, 1050);
  } else if (way >= 87 && way < 97) {
    s.N = numbers.between(8, 11);
  } else if (way >= 97) {
    (way == 97 ? s.N : way == 98 ? s.L : s.S) = 0;
  }
}

Shape draw_shape(Numbers& numbers, bool ragged) {
  constexpr int64_t kDims[] = {1, 3, 5, 7, 8, 16, 17, 33};
  Shape s;
  draw_lengths(numbers, s);
  const bool large = s.N * larger(s.L, s.S) > 100;
  s.H = numbers.between(1, large ? 2 : 3);
  s.D = kDims[numbers.below(large ? 6 : 8)];
  s.Dv = numbers.percent(70) ? s.D : kDims[numbers.below(6)];
  s.E = numbers.percent(60) ? s.H * s.D : numbers.between(1, 40);
  s.kdim = numbers.percent(70) ? s.E : numbers.between(1, 40);
  s.vdim = numbers.percent(70) ? s.kdim : numbers.between(1, 40);
  s.ragged = ragged;
  if (ragged) {
    const int64_t L = s.L, S = s.S;
    s.L = s.S = 0;
    s.query_offsets = s.key_offsets = {0};
    const bool alike = numbers.percent(50);
    for (int64_t n = 0; n < s.N; ++n) {
      const int64_t l = numbers.between(0, L), k = alike ? l : numbers.between(0, S);
      s.query_offsets.push_back(s.query_offsets.back() + l), s.L = larger(s.L, l);
      s.key_offsets.push_back(s.key_offsets.back() + k), s.S = larger(s.S, k);
    }
  } else if (numbers.percent(30)) {
    s.S = s.L;
  }
  const bool alike = ragged ? s.query_offsets == s.key_offsets : s.L == s.S;
  if (s.kdim == s.vdim && numbers.percent(50)) s.shared = alike && s.E == s.kdim ? 3 : 2;
  s.extra_key = numbers.percent(25), s.zero_row = numbers.percent(25);
  s.causal = numbers.percent(35);
  s.dropout = numbers.percent(40) ? double(numbers.between(1, 8)) / 8 : 0;
  s.seed = numbers.next(), s.counter = numbers.next();
  return s;
}

template <class T>
uint64_t layers(Numbers numbers, int count, bool ragged, DType computed) {
  Digest digest;
  for (int i = 0; i < count; ++i) {
    const LayerProblem<T> p = layer_problem<T>(numbers, draw_shape(numbers, ragged));
    digest.add_all(run_in(computed, p, run_layer<T>, ragged ? "ragged" : "layer", i).results());
  }
  return digest.value();
}

// Weights in panels, a sequence at a time, and groups of keys.
template <class T>
uint64_t chosen_layers(Numbers numbers, DType computed) {
  constexpr int64_t kSizes[][5] = {{2, 70, 70, 2, 16},  {1, 5, 600, 3, 7},    {2, 130, 129, 1, 33},
                                   {5, 210, 210, 2, 8}, {10, 210, 209, 1, 6}, {9, 20, 20, 2, 16},
                                   {3, 1, 65, 2, 64},   {1, 9, 1100, 1, 16}};
  Digest digest;
  for (const auto& [N, L, S, H, D] : kSizes) {
    Shape s = draw_shape(numbers, false);
    s.N = N, s.L = L, s.S = S, s.H = H, s.D = s.Dv = D, s.E = s.kdim = s.vdim = H * D;
    s.shared = L == S ? 3 : 2;
    const LayerProblem<T> p = layer_problem<T>(numbers, s);
    digest.add_all(run_in(computed, p, run_layer<T>, "chosen", int(L)).results());
  }
  return digest.value();
}

template <class T>
struct AttentionProblem {
  Array<T> q, k, v, d_out, out, stats, delta, d_q, d_k, d_v, weights, float_mask, d_mask;
  Array<uint8_t> bool_mask;
  bool true_hides = false, causal = false;
  double scale = 1, dropout = 0;
  uint64_t seed = 0;
  Offsets offsets;
  DType computed = dtype_of<T>();

  std::vector<const Array<T>*> results() const {
    return {&out, &stats, &delta, &d_q, &d_k, &d_v, &weights, &d_mask};
  }
};

template <class T>
AttentionCall attention_call(const AttentionProblem<T>& p) {
  AttentionCall call;
  call.q = p.q.view, call.k = p.k.view, call.v = p.v.view;
  const int64_t *q = call.q.size, *k = call.k.size;
  AttentionSpec& spec = call.attention;
  spec.dtype = p.computed;
  spec.heads = {
      .count = q[1], .key_count = call.k.size[1], .dim = q[3], .value_dim = call.v.size[3]};
  spec.shape.batch = q[0], spec.shape.queries = q[2], spec.shape.keys = k[2];
  spec.rules.scale = p.scale;
  spec.rules.mask = score_axes(p.bool_mask.view ? p.bool_mask.view : p.float_mask.view, spec);
  spec.rules.true_hides = p.true_hides, spec.rules.causal = p.causal;
  spec.rules.dropout = {p.dropout, p.seed, 0};
  spec.rules.offsets = p.offsets;
  return call;
}

template <class T>
void run_attention(AttentionProblem<T>& p) {
  const AttentionCall call = attention_call(p);
  WeightsView weights;
  if (p.weights.view) weights = {p.weights.view, call.q.size[1]};
  attention_forward(call, p.out.view, p.stats.view, weights);
  row_dot(p.d_out.view, p.out.view, p.delta.view);
  const AttentionGradients g{p.d_q.view, p.d_k.view, p.d_v.view, p.d_mask.view};
  attention_backward(call, p.stats.view, p.delta.view, p.d_out.view, g);
}

template <class T>
AttentionProblem<T> attention_problem(Numbers& numbers, bool few) {
  AttentionProblem<T> p;
  Shape s = draw_shape(numbers, false);
  if (few)
    s.N = numbers.between(1, 2), s.L = numbers.between(1, 4), s.S = numbers.between(256, 1100);
  if (!few && s.L <= 4 && s.S >= 256) s.L += 4;
  const Sizes queries = {s.N, s.H, s.L, s.D}, outs = {s.N, s.H, s.L, s.Dv};
  const Sizes keys = {s.N, s.H, s.S, s.D}, values = {s.N, s.H, s.S, s.Dv};
  p.q = random<T>(numbers, queries), p.d_q = random<T>(numbers, queries);
  p.k = random<T>(numbers, keys), p.d_k = random<T>(numbers, keys);
  p.v = random<T>(numbers, values), p.d_v = random<T>(numbers, values);
  p.out = random<T>(numbers, outs), p.d_out = random<T>(numbers, outs);
  p.stats = random<T>(numbers, {2, s.N, s.H, s.L}), p.delta = random<T>(numbers, {s.N, s.H, s.L});
  if (numbers.percent(60)) {
    Sizes sizes = {s.N, s.H, s.L, s.S};
    for (int64_t& n : sizes) n = numbers.percent(40) ? 1 : n;
    if (numbers.percent(50))
      p.bool_mask = mask<uint8_t>(numbers, sizes);
    else
      p.float_mask = mask<T>(numbers, sizes), p.d_mask = random<T>(numbers, sizes);
  }
  if (!few && numbers.percent(40)) p.weights = random<T>(numbers, {s.N, s.H, s.L, s.S});
  p.true_hides = numbers.percent(50), p.causal = s.causal;
  p.scale = double(numbers.between(-4, 8)) / 4;
  p.dropout = s.dropout, p.seed = s.seed;
  if (numbers.percent(40))
    p.offsets = {numbers.below(9), numbers.below(9), numbers.below(90), numbers.below(90)};
  return p;
}

template <class T>
uint64_t attentions(Numbers numbers, int count, bool few, DType computed) {
  Digest digest;
  for (int i = 0; i < count; ++i) {
    const AttentionProblem<T> p = attention_problem<T>(numbers, few);
    digest.add_all(run_in(computed, p, run_attention<T>, few ? "few" : "attention", i).results());
  }
  return digest.value();
}

// The lines that are asked for, by how they begin after the set's name; none: all.
std::vector<std::string> g_asked;

bool asked(const std::string& line) {
  bool found = g_asked.empty();
  for (const std::string& begin : g_asked) found |= line.compare(0, begin.size(), begin) == 0;
  return found;
}

// Of arrays of T, computed in another dtype, perhaps; a part of the calls.
template <class T>
void print_all(const char* set, const char* dtype, DType computed = dtype_of<T>(), int part = 1) {
  const auto line = [&](const char* kind, auto compute) {
    const std::string name = std::string(kind) + " " + dtype;
    if (!asked(name)) return;
    std::printf("%s: %s %016llx\n", set, name.c_str(), static_cast<unsigned long long>(compute()));
    std::fflush(stdout);
  };
  constexpr uint64_t seed = 10 * sizeof(T);  // other calls for each dtype
  line("layer", [&] { return layers<T>(Numbers(seed + 1), 400 / part, false, computed); });
  line("layer, chosen sizes,", [&] { return chosen_layers<T>(Numbers(seed + 2), computed); });
  line("ragged", [&] { return layers<T>(Numbers(seed + 3), 150 / part, true, computed); });
  line("attention", [&] { return attentions<T>(Numbers(seed + 4), 400 / part, false, computed); });
  line("few queries", [&] { return attentions<T>(Numbers(seed + 5), 40 / part, true, computed); });
}

}  // namespace

// Takes the number of threads, on which nothing depends, or "lent" for some of another runtime's;
// and how the lines begin that are wanted.
int main(int count, char** words) {
  const std::string threads = count > 1 ? words[1] : "2";
  std::optional<Crew> crew;
  if (threads == "lent") crew.emplace(3);
  set_num_threads(crew ? 3 : std::atoi(threads.c_str()));
  set_little(0);
  if (count > 2) g_asked.assign(words + 2, words + count);
  try {
    kernels_in_use();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  const KernelSet& set = kernels_in_use();
  const char* const name = set.name == std::string("baseline") ? "baseline" : "FMA";
  print_all<float>(name, "float32");
  print_all<double>(name, "float64");
  if (set.bf16) print_all<float>(set.name, "bfloat16", DType::BFloat16, 2);
  if (crew && !crew->helped()) {
    std::fprintf(stderr, "lent threads had nothing to do\n");
    return 1;
  }
}
