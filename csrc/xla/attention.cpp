// Handlers of attention alone, forward and backward.
//
// Operands: query, key, value, (N, tokens, heads, features); those of the ones below that `given`
// tells of, in this order; backward then takes stats, out, d_out and perhaps d_lse.
#include <vector>

#include "batches.h"
#include "engine.h"

namespace multihead::xla {
namespace {

enum Given : int64_t {
  kMask = 1,       // (1|N, 1|H, 1|L, 1|S), true shows
  kSlopes = 2,     // (1|N, H)
  kSinks = 4,      // (H)
  kPositions = 8,  // (1|N) of int32 or int64
  kLengths = 16,   // likewise
  kSeed = 32,      // (4) of uint32: the upper half, the lower, the first sequence, the first head
  kLseGradient = 64,
  kMaskGradient = 128,
  kSinkGradient = 256,
};

// Names are those of the custom call's attributes.
struct Options {
  bool broadcast_dropout, causal;
  double dropout_p;
  int64_t given;
  double scale, softcap;
  int64_t window_left, window_right;

  bool has(Given which) const { return (given & which) != 0; }
};

struct Inputs {
  Operand query, key, value, mask, slopes, sinks, positions, lengths, seed;

  Inputs(Arguments& from, const Options& options)
      : query(from.take_tokens("query", 0)),
        key(from.take_tokens("key", 0)),
        value(from.take_tokens("value", 0)) {
    if (options.has(kMask)) mask = from.take("mask", 4, 0);
    if (options.has(kSlopes)) slopes = from.take("alibi_slopes", 2, 0);
    if (options.has(kSinks)) sinks = from.take("sinks", 1, -1);
    if (options.has(kPositions)) positions = from.take("query_offset", 1, 0);
    if (options.has(kLengths)) lengths = from.take("key_lengths", 1, 0);
    if (options.has(kSeed)) seed = from.take("seed", 1, -1);
  }

  std::vector<Operand*> all() {
    return {&query, &key, &value, &mask, &slopes, &sinks, &positions, &lengths, &seed};
  }
};

// (N, 2, H, L) as the engine has it, (2, N, H, L): sequences lie apart.
template <class From>
Operand take_stats(From& from) {
  Operand stats = from.take("stats", 4, 0);
  stats.swap_axes(0, 1);
  return stats;
}

// One call of the engine, of one entry: its arguments, and the integers that these refer to.
struct Entry {
  faces::AttentionArguments arguments;
  std::vector<int64_t> positions, lengths;

  Entry(const Inputs& in, const Options& options, const Batches& batches) {
    faces::AttentionTensors& t = arguments.tensors;
    t.query = batches.view(in.query);
    t.key = batches.view(in.key);
    t.value = batches.view(in.value);
    t.mask = batches.view(in.mask);
    t.alibi_slopes = batches.view(in.slopes);
    t.sinks = batches.view(in.sinks);
    faces::AttentionOptions& o = arguments.options;
    o.dtype = t.query.dtype;
    o.causal = options.causal;
    o.scale = options.scale;
    o.softcap = options.softcap;
    o.window_left = options.window_left;
    o.window_right = options.window_right;
    if (in.seed) {
      const uint32_t* const words = batches.view(in.seed).as<uint32_t>();
      o.dropout = {.p = options.dropout_p,
                   .seed = uint64_t(words[0]) << 32 | words[1],
                   .shared = options.broadcast_dropout};
      o.offsets.batch = words[2];
      o.offsets.head = words[3];
    }
    const int64_t n = batches.sequences();
    if (in.positions) {
      positions = integers_of(in.positions, batches.offset(in.positions), n);
      arguments.positions.query = positions.data();
    }
    if (in.lengths) {
      lengths = integers_of(in.lengths, batches.offset(in.lengths), n);
      arguments.positions.key_lengths = lengths.data();
    }
  }
  Entry(const Entry&) = delete;
};

// Dropout draws by places in the batch, which are an entry's own.
bool folds(const Options& options) { return !options.has(kSeed); }

// Results: out, and stats if there is room for them.
ffi::Error attention_forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                             Options options) {
  return checked(pool, [&] {
    Arguments from(args);
    Results to(rets);
    Inputs in(from, options);
    Operand out = to.take_tokens("out", 0), stats;
    if (rets.size() > 1) stats = take_stats(to);
    std::vector<Operand*> operands = in.all();
    operands.insert(operands.end(), {&out, &stats});
    Batches batches(std::move(operands), folds(options));
    for (Operand* o : {&in.query, &in.key, &in.value, &in.slopes}) batches.expand(*o);
    return batches.each([&] {
      const Entry entry(in, options, batches);
      return engine().attention_forward(entry.arguments,
                                        {batches.view(out), batches.view(stats), {}});
    });
  });
}

// delta -= d_lse, (N, H, L) both.
template <class E>
void subtract(const View& delta, const View& d_lse) {
  for (int64_t n = 0; n < delta.size[0]; ++n)
    for (int64_t h = 0; h < delta.size[1]; ++h)
      for (int64_t i = 0; i < delta.size[2]; ++i)
        delta.as<E>()[delta.at(n, h, i)] -= d_lse.as<E>()[d_lse.at(n, h, i)];
}

// Results: gradients of query, key and value; of the mask and the sinks if they are wanted; delta.
ffi::Error attention_backward(ffi::ThreadPool pool, ffi::RemainingArgs args,
                              ffi::RemainingRets rets, Options options) {
  return checked(pool, [&] {
    Arguments from(args);
    Inputs in(from, options);
    Operand stats = take_stats(from), out = from.take_tokens("out", 0);
    Operand d_out = from.take_tokens("d_out", 0), d_lse;
    if (options.has(kLseGradient)) d_lse = from.take("d_lse", 3, 0);

    Results to(rets);
    Operand d_query = to.take_tokens("d_query", 0), d_key = to.take_tokens("d_key", 0);
    Operand d_value = to.take_tokens("d_value", 0), d_mask, d_sinks;
    if (options.has(kMaskGradient)) d_mask = to.take("d_mask", 4, 0);
    if (options.has(kSinkGradient)) d_sinks = to.take("d_sinks", 1, -1);
    Operand delta = to.take("delta", 3, 0);

    std::vector<Operand*> operands = in.all();
    operands.insert(operands.end(), {&stats, &out, &d_out, &d_lse, &d_query, &d_key, &d_value,
                                     &d_mask, &d_sinks, &delta});
    Batches batches(std::move(operands), folds(options));
    for (Operand* o : {&in.query, &in.key, &in.value, &in.slopes, &stats, &out, &d_out, &d_lse})
      batches.expand(*o);
    return batches.each([&]() -> faces::Outcome {
      const Entry entry(in, options, batches);
      const View of_out = batches.view(d_out), rows = batches.view(delta);
      const faces::Outcome products = engine().row_dot(of_out, batches.view(out), rows);
      if (products.status != faces::Status::Done) return products;
      if (d_lse && rows.dtype == DType::Float64) subtract<double>(rows, batches.view(d_lse));
      if (d_lse && rows.dtype == DType::Float32) subtract<float>(rows, batches.view(d_lse));
      faces::AttentionTensors gradients;
      gradients.query = batches.view(d_query);
      gradients.key = batches.view(d_key);
      gradients.value = batches.view(d_value);
      gradients.mask = batches.view(d_mask);
      gradients.sinks = batches.view(d_sinks);
      return engine().attention_backward(entry.arguments, {of_out, batches.view(stats), {}}, rows,
                                         gradients);
    });
  });
}

}  // namespace

}  // namespace multihead::xla

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    multihead::xla::Options, StructMember<bool>("broadcast_dropout"), StructMember<bool>("causal"),
    StructMember<double>("dropout_p"), StructMember<int64_t>("given"),
    StructMember<double>("scale"), StructMember<double>("softcap"),
    StructMember<int64_t>("window_left"), StructMember<int64_t>("window_right"));

extern "C" MULTIHEAD_EXPORT XLA_FFI_Error* multihead_attention_forward(XLA_FFI_CallFrame* frame) {
  using namespace multihead::xla;
  static const auto* const handler = ffi::Ffi::Bind()
                                         .Ctx<ffi::ThreadPool>()
                                         .RemainingArgs()
                                         .RemainingRets()
                                         .Attrs<Options>()
                                         .To(attention_forward)
                                         .release();
  return handler->Call(frame);
}

extern "C" MULTIHEAD_EXPORT XLA_FFI_Error* multihead_attention_backward(XLA_FFI_CallFrame* frame) {
  using namespace multihead::xla;
  static const auto* const handler = ffi::Ffi::Bind()
                                         .Ctx<ffi::ThreadPool>()
                                         .RemainingArgs()
                                         .RemainingRets()
                                         .Attrs<Options>()
                                         .To(attention_backward)
                                         .release();
  return handler->Call(frame);
}
