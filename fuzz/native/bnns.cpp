// The C functions under libFuzzer: each input is a filter, its forwards and its backward. What is
// valid has the numbers of the oracle and the bits of the other kernel sets; all else is an error
// that changes nothing.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/api.h"
#include "judge.h"
#include "run.h"

namespace fuzz {
namespace {

using multihead::EngineTable;

const EngineTable& engine() { return *multihead_private_table(); }

// Kernel sets. Those of one family give the same bits.

std::vector<std::string> sets() {
  const char* names[16];
  const int count = std::min(engine().available(names, 16), 16);
  return {names, names + count};
}

std::string family(const std::string& set, bool bfloat16) {
  const bool pairs = set == "amx" || set == "avx512_bf16" || set == "neon_bf16";
  return set == "baseline" || (pairs && bfloat16) ? set : "FMA";
}

void use(const std::string& set) {
  if (engine().use_kernels(set.c_str()).status != multihead::faces::Status::Done)
    found("a kernel set that is not there");
}

// The bytes of all arrays after a forward and a backward.
std::vector<std::vector<uint8_t>> bits(Problem& p, bool cached) {
  p.restore();
  const Call& c = p.call;
  BNNSFilter filter = BNNSFilterCreateLayerMultiheadAttention(&p.layer, &p.filter);
  if (!filter) found("create refused what it took before");
  size_t size = 0;
  std::unique_ptr<char[]> cache;
  const auto forward = [&](void* to) {
    return BNNSApplyMultiheadAttention(filter, c.batch, c.input[0], c.stride[0], c.input[1],
                                       c.stride[1], c.key_mask, c.key_mask_stride, c.input[2],
                                       c.stride[2], c.output, c.output_stride, c.attention,
                                       cached ? &size : nullptr, to, nullptr, nullptr);
  };
  if (cached) {
    forward(nullptr);
    cache.reset(new char[size]);
  }
  int status = forward(cache.get());
  if (!p.o.in_place)
    status |= BNNSApplyMultiheadAttentionBackward(
        filter, c.batch, c.input[0], c.stride[0], c.delta[0], c.input[1], c.stride[1], c.key_mask,
        c.key_mask_stride, c.delta[1], c.input[2], c.stride[2], c.delta[2], c.attention,
        c.key_bias_delta, c.value_bias_delta, nullptr, 0, c.delta[3], size, cache.get(), nullptr,
        nullptr);
  if (status) found("a call that is right failed");
  g_calls += 3;
  BNNSFilterDestroy(filter);
  std::vector<std::vector<uint8_t>> all;
  for (const Slot& s : p.slots) all.emplace_back(s.memory.get(), s.memory.get() + s.bytes);
  return all;
}

void compare_bits(Draws& draws, const std::vector<std::string>& sets) {
  Problem p(draws);
  g_text = p.text();
  if (p.o.wild || p.o.batch == 0) return;
  const bool narrow = p.layer.query.target_desc.data_type == BNNSDataTypeBFloat16;
  const std::string here = draws.pick_of(sets), there = draws.pick_of(sets);
  g_text += "; bits of " + here + " and " + there;
  use(here);
  const auto first = bits(p, draws.flip());
  if (family(here, narrow) != family(there, narrow)) return;
  use(there);
  p.filter.n_threads = size_t(draws.below(3));
  engine().set_little(draws.flip() ? 0 : 1 << 20);
  if (bits(p, draws.flip()) != first) found("other bits");
}

}  // namespace

void one(const uint8_t* data, size_t size) {
  static const std::vector<std::string> all = sets();
  Draws draws(data, size);
  const std::string set = draws.pick_of(all);
  use(set);
  engine().set_little(draws.flip() ? 0 : 1 << 20);
  if (draws.flip(0.2)) return compare_bits(draws, all);
  Problem problem(draws);
  g_text = set + ": " + problem.text();
  if (std::getenv("FUZZ_SHOW")) std::fprintf(stderr, "%s\n", g_text.c_str());
  run(draws, problem);
}

}  // namespace fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  std::atexit([] { std::fprintf(stderr, "calls: %llu\n", (unsigned long long)fuzz::g_calls); });
  multihead_set_num_threads(1);  // where a filter does not ask for more
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::one(data, size);
  return 0;
}
