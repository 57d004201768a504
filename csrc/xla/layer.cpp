// Handlers of the whole layer, forward and backward.
//
// Operands: the tensors that `given` tells of, in the order of kLayerTensors, and dropout's seed
// with the first sequence and head of this device; backward then takes the cache, d_out and, if
// there is one, d_weights.
#include <cstring>

#include "engine.h"
#include "layer_cache.h"
#include "operand.h"

namespace multihead::xla {
namespace {

// Names are those of the custom call's attributes.
struct LayerAttributes {
  bool causal;
  double dropout_p;
  int64_t given;
  int64_t head_dim;
  bool interleaved, kernels;
  int64_t key_heads, num_heads;
  double softcap;
  bool tokens_first;
  int64_t wanted;   // gradients, as `given`
  int64_t weights;  // see faces::Weights
  int64_t window_left, window_right;
  bool zero_row;
};

// Axes of kLayerTensors: inputs and masks are always of a batch.
constexpr int kRanks[] = {3, 3, 3, 2, 4, 2, 2, 2, 2, 1, 3, 3, 2, 1, 1, 1, 2, 2};
static_assert(std::size(kRanks) == std::size(faces::kLayerTensors));

bool is_weight(View faces::LayerTensors::* field) {
  using T = faces::LayerTensors;
  return field == &T::in_weight || field == &T::q_weight || field == &T::k_weight ||
         field == &T::v_weight || field == &T::out_weight;
}

// f(name, rank, field) of the tensors that some bits tell of.
template <class F>
void each_of(int64_t bits, F f) {
  for (size_t i = 0; i < std::size(kRanks); ++i)
    if (bits >> i & 1) f(faces::kLayerTensors[i].name, kRanks[i], faces::kLayerTensors[i].view);
}

// As the engine names them: kernels are the transposes of its weights.
template <class Buffers>
faces::LayerTensors take_tensors(Reader<Buffers>& from, int64_t bits, bool kernels) {
  faces::LayerTensors tensors;
  each_of(bits, [&](const char* name, int rank, View faces::LayerTensors::* field) {
    Operand o = from.take(name, rank, -1);
    if (kernels && is_weight(field)) o.swap_axes(0, 1);
    tensors.*field = o.view;
  });
  return tensors;
}

faces::LayerArguments take_arguments(Arguments& from, const LayerAttributes& a) {
  faces::LayerArguments to;
  to.tensors = take_tensors(from, a.given, a.kernels);
  faces::LayerOptions& o = to.options;
  o.dtype = to.tensors.query.dtype;
  o.num_heads = a.num_heads;
  o.key_heads = a.key_heads;
  o.head_dim = a.head_dim;
  o.zero_row = a.zero_row;
  o.causal = a.causal;
  o.weights = faces::Weights(a.weights);
  o.tokens_first = a.tokens_first;
  o.softcap = a.softcap;
  o.window_left = a.window_left;
  o.window_right = a.window_right;
  o.interleaved = a.interleaved;
  if (a.dropout_p > 0) {
    const uint32_t* const words = from.take("seed", 1, -1).view.as<uint32_t>();
    o.dropout = {.p = a.dropout_p, .seed = uint64_t(words[0]) << 32 | words[1]};
    o.offsets.batch = words[2];
  }
  return to;
}

int64_t sequences_of(const faces::LayerArguments& a) {
  return a.tensors.query.size[a.options.tokens_first ? 1 : 0];
}

// out or its gradient, and the weights' where there are any.
template <class Buffers>
faces::LayerResults take_results(Reader<Buffers>& from, const LayerAttributes& a, bool weights) {
  faces::LayerResults results;
  results.out = from.take("out", 3, -1).view;
  const bool average = faces::Weights(a.weights) == faces::Weights::Average;
  if (weights) results.weights = from.take("weights", average ? 3 : 4, -1).view;
  return results;
}

// The engine adds to gradients of parameters, and sets the others.
void clear(const View& v) {
  int64_t bytes = item_bytes(v.dtype);
  for (int i = 0; i < v.rank; ++i) bytes *= v.size[i];
  std::memset(v.data, 0, size_t(bytes));
}

// Results: out, weights if the call asks for them, and a cache if there is room for one.
ffi::Error layer_forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                         LayerAttributes a) {
  return checked(pool, [&] {
    Arguments from(args);
    Results to(rets);
    const faces::LayerArguments arguments = take_arguments(from, a);
    const bool weights = faces::Weights(a.weights) != faces::Weights::None;
    const faces::LayerResults results = take_results(to, a, weights);
    CacheMemory cache;
    if (rets.size() > size_t(weights ? 2 : 1))
      cache = new_cache(to.take("cache", 2, -1), sequences_of(arguments));
    return engine().layer_forward(arguments, results, cache);
  });
}

// Results: the gradients that `wanted` tells of.
ffi::Error layer_backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                          LayerAttributes a) {
  return checked(pool, [&] {
    Arguments from(args);
    Results to(rets);
    const faces::LayerArguments arguments = take_arguments(from, a);
    const CacheMemory cache = kept_cache(from.take("cache", 2, -1), sequences_of(arguments));
    const bool weights = from.taken() + 1 < args.size();
    const faces::LayerResults d_results = take_results(from, a, weights);
    const faces::LayerTensors gradients = take_tensors(to, a.wanted, a.kernels);
    for (const auto& [name, view] : faces::kLayerTensors)
      if (gradients.*view) clear(gradients.*view);
    return engine().layer_backward(arguments, cache, d_results, gradients);
  });
}

}  // namespace
}  // namespace multihead::xla

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    multihead::xla::LayerAttributes, StructMember<bool>("causal"),
    StructMember<double>("dropout_p"), StructMember<int64_t>("given"),
    StructMember<int64_t>("head_dim"), StructMember<bool>("interleaved"),
    StructMember<bool>("kernels"), StructMember<int64_t>("key_heads"),
    StructMember<int64_t>("num_heads"), StructMember<double>("softcap"),
    StructMember<bool>("tokens_first"), StructMember<int64_t>("wanted"),
    StructMember<int64_t>("weights"), StructMember<int64_t>("window_left"),
    StructMember<int64_t>("window_right"), StructMember<bool>("zero_row"));

extern "C" MULTIHEAD_EXPORT XLA_FFI_Error* multihead_layer_forward(XLA_FFI_CallFrame* frame) {
  using namespace multihead::xla;
  static const auto* const handler = ffi::Ffi::Bind()
                                         .Ctx<ffi::ThreadPool>()
                                         .RemainingArgs()
                                         .RemainingRets()
                                         .Attrs<LayerAttributes>()
                                         .To(layer_forward)
                                         .release();
  return handler->Call(frame);
}

extern "C" MULTIHEAD_EXPORT XLA_FFI_Error* multihead_layer_backward(XLA_FFI_CallFrame* frame) {
  using namespace multihead::xla;
  static const auto* const handler = ffi::Ffi::Bind()
                                         .Ctx<ffi::ThreadPool>()
                                         .RemainingArgs()
                                         .RemainingRets()
                                         .Attrs<LayerAttributes>()
                                         .To(layer_backward)
                                         .release();
  return handler->Call(frame);
}
