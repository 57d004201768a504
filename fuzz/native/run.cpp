// One input: a filter, its forwards and its backward.
#include "run.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "judge.h"

namespace fuzz {
namespace {

// Memory of the client's, of which some is not given.

int g_left = -1;  // allocations until one fails; negative: none does
int64_t g_held = 0;

int give(void** to, size_t alignment, size_t size) {
  if (g_left == 0) return 1;
  if (g_left > 0) --g_left;
  if (posix_memalign(to, std::max(alignment, sizeof(void*)), std::max<size_t>(size, 1))) return 1;
  ++g_held;
  return 0;
}

void take_back(void* p) {
  --g_held;
  std::free(p);
}

// Whether float32 has the numbers of float64 for it: neither what is not finite nor scores so large
// that others vanish beside them.
bool moderate(const Numbers& x, bool hides = false) {
  return std::all_of(x.begin(), x.end(),
                     [&](double a) { return std::fabs(a) < 100 || (hides && a == -INFINITY); });
}

bool moderate(const Layer& l) {
  bool good = moderate(l.key_bias) && moderate(l.value_bias) && moderate(l.added, true);
  for (const Numbers& x : l.input) good &= moderate(x);
  for (const Numbers& x : l.weights) good &= moderate(x);
  for (const Numbers& x : l.bias) good &= moderate(x);
  return good;
}

class Run {
 public:
  Run(Draws& draws, Problem& problem) : draws_(draws), p_(problem) {
    stage_ = draws.flip(0.4) ? int(draws.below(3)) : -1;
    allocates_ = draws.flip(0.2);
    fails_ = allocates_ && stage_ < 0 && draws.flip(0.3) ? int(draws.below(8)) : -1;
  }

  void all() {
    if (allocates_) p_.filter.alloc_memory = give, p_.filter.free_memory = take_back;
    spoil_at(0);
    f_ = see_filter(p_);
    if (!owes(f_.verdict)) return;
    ++g_calls;
    BNNSFilter filter = BNNSFilterCreateLayerMultiheadAttention(&p_.layer, &p_.filter);
    if (!p_.untouched()) found("create changed an array");
    if (!judge(f_.verdict, filter ? 0 : -1, "create")) return;
    layer_ = layer_of(p_, f_);
    calls(filter);
    g_left = -1;
    BNNSFilterDestroy(filter);
    if (g_held) found("memory of the client's is not given back");
  }

 private:
  void calls(BNNSFilter filter) {
    const int before = int(draws_.below(8) == 0);
    for (int i = 0; i <= before; ++i) {
      if (i == before) spoil_at(1);
      const CallSeen c = see_call(p_, f_, p_.call, true);
      if (c.verdict == Verdict::Accept && p_.call.batch > 1u << 22)
        return;  // of seconds, all empty
      if (!owes(c.verdict) || !forward(filter, c, uint64_t(i), i == before)) return;
    }
    if (p_.o.in_place || spoiled_) return;
    spoil_at(2);
    const CallSeen c = see_call(p_, f_, p_.call, false);
    const GradientsSeen g = see_gradients(p_, f_, c, p_.call, cached_);
    if (owes(g.verdict)) backward(filter, g);
  }

  void spoil_at(int stage) {
    if (stage != stage_) return;
    g_text += "; spoiled " + spoil(draws_, p_, stage);
    spoiled_ = true;
  }

  // Whether a call can be made.
  bool owes(Verdict v) const { return v != Verdict::Unsure; }

  // Whether it went well; what it should not have done is found.
  bool judge(Verdict v, int status, const std::string& name) {
    const char* const why = multihead_last_error();
    if (status == 0 && v == Verdict::Refuse) found(name + " took what is wrong");
    if (status == 0 && *why) found(name + " went well, with a reason");
    if (status != 0 && !*why) found(name + " failed without a reason");
    if (status != 0 && v == Verdict::Accept && g_left != 0 && !too_much())
      found(name + " refused what is right");
    return status == 0;
  }

  // Whether a list of so many sequences, be they empty, may be more than there is memory for.
  bool too_much() const {
    return p_.call.batch > 1u << 20 && std::strstr(multihead_last_error(), "out of memory");
  }

  bool forward(BNNSFilter filter, const CallSeen& c, uint64_t counter, bool last) {
    Layer l = layer_;
    if (c.verdict == Verdict::Accept) add_call(l, f_, c);
    l.counter = counter;
    cached_ = last && draws_.flip(0.6);
    const bool own = draws_.flip(0.4);
    size_t cache_size = 0, work_size = 0;
    if (c.verdict == Verdict::Accept) {
      size_t* const asked = cached_ ? &cache_size : nullptr;  // the answer is for a call like it
      if (apply(filter, asked, nullptr, &work_size, nullptr)) found("a question failed");
      if (!p_.untouched()) found("a question changed an array");
    }
    const bool less = cached_ && draws_.flip(0.05), less_work = own && draws_.flip(0.05);
    const Verdict v = less || less_work ? worse(c.verdict, Verdict::Refuse) : c.verdict;
    if (cache_size > 1u << 26 || work_size > 1u << 26) return false;
    cache_.reset(new char[cache_size + 64]);
    shift_ = size_t(draws_.below(64));
    cache_size_ = cache_size;
    std::unique_ptr<char[]> work(new char[work_size]);
    cache_size -= less, work_size -= less_work;
    if (fails_ >= 0) g_left = fails_;
    const int status =
        apply(filter, cached_ ? &cache_size : nullptr, cached_ ? cache_.get() + shift_ : nullptr,
              own ? &work_size : nullptr, own ? work.get() : nullptr);
    if (status && !p_.untouched()) found("a forward that failed changed an array");
    if (!judge(v, status, "forward")) return false;
    for (const Slot& s : p_.slots)
      if (!(s.holds(c.output.data, 0) ? s.untouched_but(c.output) : s.untouched()))
        found("forward changed what is no output");
    layer_now_ = l;
    attended_ = fuzz::forward(l);
    moderate_ = moderate(l);
    if (l.dims.N && moderate_) {
      const double bound = 16 * std::max(tolerance(false, c.output.type), narrow(false));
      expect(c.output.values(), attended_.out, bound, 1, "output");
    }
    p_.keep();
    return true;
  }

  int apply(BNNSFilter filter, size_t* cache_size, void* cache, size_t* work_size, void* work) {
    const Call& c = p_.call;
    ++g_calls;
    return BNNSApplyMultiheadAttention(filter, c.batch, c.input[0], c.stride[0], c.input[1],
                                       c.stride[1], c.key_mask, c.key_mask_stride, c.input[2],
                                       c.stride[2], c.output, c.output_stride, c.attention,
                                       cache_size, cache, work_size, work);
  }

  void backward(BNNSFilter filter, const GradientsSeen& g) {
    char* cache = cached_ ? cache_.get() + shift_ : nullptr;
    std::unique_ptr<char[]> moved;
    if (cached_ && draws_.flip(0.3)) {  // to where it may be aligned otherwise
      moved.reset(new char[cache_size_ + 64]);
      cache = static_cast<char*>(std::memcpy(moved.get() + draws_.below(64), cache, cache_size_));
    }
    Verdict v = g.verdict;
    bool flipped = false;
    if (cached_ && !spoiled_ && draws_.flip(0.1)) {
      const bool header = draws_.flip();
      const size_t at = size_t(draws_.below(header ? 56 : int64_t(cache_size_)));
      cache[at] = char(cache[at] ^ 1 << draws_.below(8));
      g_text += "; a bit of byte " + std::to_string(at) + " of the cache is flipped";
      flipped = true;
      const bool checked = at < 16 || (at >= 24 && at < 48);  // all but the counter and the shift
      if (checked && p_.call.batch > 0) v = Verdict::Refuse;
      if (at >= 48 && at < 56 && p_.call.batch > 0 && v == Verdict::Accept) v = Verdict::Unsure;
    }
    if (cached_ && spoiled_ && v == Verdict::Accept)
      v = Verdict::Unsure;  // a cache of another call
    size_t work_size = 0;
    std::unique_ptr<char[]> work;
    if (v == Verdict::Accept && draws_.flip(0.4)) {
      if (apply_backward(filter, cache, &work_size, nullptr)) found("a question failed");
      if (!p_.untouched()) found("a question changed an array");
      if (work_size > 1u << 26) return;
      work.reset(new char[work_size]);
    }
    std::vector<char> was;
    if (cache) was.assign(cache, cache + cache_size_);
    g_left = fails_;
    const int status = apply_backward(filter, cache, work ? &work_size : nullptr, work.get());
    if (status && !p_.untouched()) found("a backward that failed changed an array");
    if (cache && !std::equal(was.begin(), was.end(), cache)) found("backward changed the cache");
    if (!judge(v, status, "backward")) return;
    for (const Slot& s : p_.slots) expect_only_gradients(s, g);
    if (!flipped && !spoiled_ && moderate_) expect_gradients(g);
  }

  int apply_backward(BNNSFilter filter, void* cache, size_t* work_size, void* work) {
    const Call& c = p_.call;
    ++g_calls;
    return BNNSApplyMultiheadAttentionBackward(
        filter, c.batch, c.input[0], c.stride[0], c.delta[0], c.input[1], c.stride[1], c.key_mask,
        c.key_mask_stride, c.delta[1], c.input[2], c.stride[2], c.delta[2], c.attention,
        c.key_bias_delta, c.value_bias_delta, nullptr, 0, c.delta[3], cache ? cache_size_ : 0,
        cache, work_size, work);
  }

  void expect_only_gradients(const Slot& s, const GradientsSeen& g) {
    Slot now;  // with what may be written as it was
    std::vector<uint8_t> bytes(s.memory.get(), s.memory.get() + s.bytes);
    for (const Seen* seen : g.written())
      if (*seen && seen->elements() && s.holds(seen->data, 0))
        for (const char* at : seen->addresses()) {
          const size_t offset = size_t(reinterpret_cast<const uint8_t*>(at) - s.memory.get());
          std::memcpy(&bytes[offset], &s.before[offset], size_t(seen->item()));
        }
    if (bytes != s.before) found("backward changed what is no gradient");
  }

  void expect_gradients(const GradientsSeen& g) {
    const Layer& l = layer_now_;
    const Numbers d_out = g.target[3].values();
    if (!moderate(d_out)) return;
    const Gradients d = fuzz::backward(l, attended_, d_out);
    double most = 0;
    for (const Numbers* all : {d.input, d.weights, d.bias})
      for (int i = 0; i < (all == d.input ? 3 : 4); ++i) most = std::max(most, largest(all[i]));
    const auto one = [&](const Seen& seen, const Numbers& wanted, const std::string& name) {
      if (!seen) return;
      Numbers sum = wanted;
      if (seen.adds) {
        const Numbers old = values_before(seen);
        if (!moderate(old)) return;
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += old[i];
      }
      const double bound = 16 * std::max(tolerance(true, seen.type), narrow(true));
      expect(seen.values(), sum, bound, 0.1 * most, name);
    };
    const char* const names[] = {"query", "key", "value", "output"};
    for (int i = 0; i < 3; ++i) {
      Numbers sum = d.input[i];
      for (int j = 0; j < 3; ++j)  // those that are the same memory receive the sum
        if (j != i && g.target[j] && g.target[i] && g.target[j].data == g.target[i].data)
          for (size_t k = 0; k < sum.size(); ++k) sum[k] += d.input[j][k];
      one(g.target[i], sum, std::string("gradient of ") + names[i]);
    }
    for (int i = 0; i < 4; ++i) {
      one(g.weights[i], d.weights[i], std::string("gradient of the weights of ") + names[i]);
      one(g.bias[i], d.bias[i], std::string("gradient of the bias of ") + names[i]);
    }
    one(g.key_bias, d.key_bias, "gradient of key_attn_bias");
    one(g.value_bias, d.value_bias, "gradient of value_attn_bias");
  }

  Numbers values_before(const Seen& seen) const {
    Numbers found;
    for (const Slot& s : p_.slots)
      if (s.holds(seen.data, 0) && found.empty())
        for (const char* at : seen.addresses())
          found.push_back(load(reinterpret_cast<const char*>(s.before.data()) +
                                   (reinterpret_cast<const uint8_t*>(at) - s.memory.get()),
                               seen.type));
    return found;
  }

  double narrow(bool gradient) const {
    const bool computes = p_.layer.query.target_desc.data_type == BNNSDataTypeBFloat16;
    return computes ? 4 * tolerance(gradient, BNNSDataTypeBFloat16) : 0;
  }

  Draws& draws_;
  Problem& p_;
  FilterSeen f_;
  Layer layer_, layer_now_;
  Attended attended_;
  std::unique_ptr<char[]> cache_;
  size_t cache_size_ = 0, shift_ = 0;
  int stage_ = -1, fails_ = -1;
  bool allocates_ = false, spoiled_ = false, cached_ = false, moderate_ = true;
};

}  // namespace

void run(Draws& draws, Problem& problem) {
  g_left = -1, g_held = 0;
  Run(draws, problem).all();
}

}  // namespace fuzz
