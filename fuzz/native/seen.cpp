// What calls say, and what the library owes them: written from docs/bnns.md alone.
#include <algorithm>
#include <cmath>
#include <limits>

#include "problem.h"

namespace fuzz {
namespace {

constexpr double kTokens = 2147483648.0;

Verdict must(bool good) { return good ? Verdict::Accept : Verdict::Refuse; }
Verdict there(bool good) { return good ? Verdict::Accept : Verdict::Unsure; }

void add(Verdict& to, Verdict more) { to = worse(to, more); }

Seen see_float(Verdict& verdict, const Descriptor& d, int rank) {
  const Seen s = see(d, rank);
  add(verdict, s.verdict);
  add(verdict, must(s.type != BNNSDataTypeBoolean));
  return s;
}

// Bytes that two arrays have in common: surely, or perhaps.
Verdict apart(const Seen& a, const Seen& b) {
  if (!a || !b || !a.data || !b.data || !a.elements() || !b.elements()) return Verdict::Accept;
  if (a.data + int64_t(a.bytes()) <= b.data || b.data + int64_t(b.bytes()) <= a.data)
    return Verdict::Accept;
  std::vector<char*> here = a.addresses(), there = b.addresses();
  std::sort(here.begin(), here.end());
  for (const char* at : there) {
    const auto next = std::lower_bound(here.begin(), here.end(), at - a.item() + 1);
    if (next != here.end() && *next < at + b.item()) return Verdict::Refuse;
  }
  return Verdict::Unsure;
}

Verdict apart_in_itself(const Seen& s) {
  if (!s || !s.elements()) return Verdict::Accept;
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (int i = 0; i < s.rank; ++i)
    if (s.size[i] > 1) steps.push_back({s.stride[i], s.size[i]});
  std::sort(steps.begin(), steps.end());
  int64_t covered = 1;
  bool nested = true;
  for (const auto& [stride, size] : steps) {
    nested &= stride >= covered;
    covered += stride * (size - 1);
  }
  if (nested) return Verdict::Accept;
  if (double(s.elements()) > 1e6) return Verdict::Unsure;
  std::vector<char*> all = s.addresses();
  std::sort(all.begin(), all.end());
  return std::adjacent_find(all.begin(), all.end()) == all.end() ? Verdict::Unsure
                                                                 : Verdict::Refuse;
}

bool same(const Seen& a, const Seen& b) {
  if (a.data != b.data || a.type != b.type || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i)
    if (a.size[i] != b.size[i] || (a.size[i] > 1 && a.stride[i] != b.stride[i])) return false;
  return true;
}

}  // namespace

FilterSeen see_filter(const Problem& p) {
  FilterSeen f;
  const auto& l = p.layer;
  const Projection* const of[] = {&l.query, &l.key, &l.value, &l.output};
  for (int i = 0; i < 4; ++i) {
    f.target[i] = see_float(f.verdict, of[i]->target_desc, 2);
    f.weights[i] = see_float(f.verdict, of[i]->weights, i == 3 ? 2 : 3);
    add(f.verdict, must(of[i]->weights.data));
    if (of[i]->bias.data) f.bias[i] = see_float(f.verdict, of[i]->bias, i == 3 ? 1 : 2);
  }
  if (l.key_attn_bias.data) f.key_bias = see_float(f.verdict, l.key_attn_bias, 2);
  if (l.value_attn_bias.data) f.value_bias = see_float(f.verdict, l.value_attn_bias, 2);
  add(f.verdict, must(bool(f.key_bias) == bool(f.value_bias)));
  add(f.verdict, must(p.filter.flags <= 1));
  add(f.verdict, must(bool(p.filter.alloc_memory) == bool(p.filter.free_memory)));
  if (f.verdict == Verdict::Refuse) return f;

  Dims& d = f.dims;
  d.E = f.weights[0].size[0], d.D = f.weights[0].size[1], d.H = f.weights[0].size[2];
  d.kdim = f.weights[1].size[0], d.vdim = f.weights[2].size[0], d.Dv = f.weights[2].size[1];
  d.T = f.target[0].size[0], d.S = f.target[1].size[0];
  for (const Seen& w : f.weights)
    for (int i = 0; i < w.rank; ++i) add(f.verdict, must(w.size[i] >= 1));
  add(f.verdict, must(double(d.H) * double(d.Dv) < kTokens));
  add(f.verdict, must(std::max(d.T, d.S) < int64_t(kTokens) - 65535));
  if (f.verdict == Verdict::Refuse) return f;
  bool fits = f.weights[1].is({d.kdim, d.D, d.H}) && f.weights[2].is({d.vdim, d.Dv, d.H}) &&
              f.weights[3].is({d.H * d.Dv, d.E}) && f.target[0].is({d.T, d.E}) &&
              f.target[1].is({d.S, d.kdim}) && f.target[2].is({d.S, d.vdim}) &&
              f.target[3].is({d.T, d.E});
  for (int i = 0; i < 4; ++i)
    if (f.bias[i]) fits &= i == 3 ? f.bias[i].is({d.E}) : f.bias[i].is({i == 2 ? d.Dv : d.D, d.H});
  if (f.key_bias) fits &= f.key_bias.is({d.D, d.H}) && f.value_bias.is({d.Dv, d.H});
  add(f.verdict, must(fits));
  for (const Seen* s : {f.weights, f.bias})
    for (int i = 0; i < 4; ++i)
      if (s[i]) add(f.verdict, there(p.holds(s[i])));
  for (const Seen* s : {&f.key_bias, &f.value_bias})
    if (*s) add(f.verdict, there(p.holds(*s)));
  return f;
}

CallSeen see_call(const Problem& p, const FilterSeen& f, const Call& call, bool forward) {
  CallSeen c;
  add(c.verdict, must(call.batch < size_t(kTokens)));
  if (c.verdict == Verdict::Refuse) return c;
  const int64_t N = int64_t(call.batch);
  const Dims& d = f.dims;
  for (int i = 0; i < 3; ++i) {
    c.input[i] = batched(f.target[i], N, call.stride[i], call.input[i]);
    add(c.verdict, c.input[i].verdict);
    if (call.input[i]) add(c.verdict, there(p.holds(c.input[i])));
    if (forward) add(c.verdict, must(call.input[i] || !c.input[i].elements()));
  }
  if (call.key_mask) {
    const Seen one = see(*call.key_mask, 1);
    add(c.verdict, one.verdict);
    add(c.verdict, must(one.type == BNNSDataTypeBoolean && one.data && one.is({d.S})));
    c.key_mask = batched(one, N, call.key_mask_stride, one.data);
    add(c.verdict, c.key_mask.verdict);
    if (c.verdict != Verdict::Refuse) add(c.verdict, there(p.holds(c.key_mask)));
  }
  if (call.attention) {
    const int rank = int(std::clamp<uint32_t>(call.attention->layout >> 16, 2, 4));
    c.attention = see(*call.attention, rank);
    add(c.verdict, c.attention.verdict);
    const Seen& a = c.attention;
    add(c.verdict,
        must(a.data && (a.is({d.T, d.S}) || a.is({d.H, d.T, d.S}) || a.is({N, d.H, d.T, d.S}))));
    if (c.verdict != Verdict::Refuse) add(c.verdict, there(p.holds(a)));
  }
  if (!forward || c.verdict == Verdict::Refuse) return c;
  c.output = batched(f.target[3], N, call.output_stride, call.output);
  add(c.verdict, c.output.verdict);
  add(c.verdict, must(call.output || !c.output.elements()));
  if (call.output) add(c.verdict, there(p.holds(c.output)));
  if (c.verdict != Verdict::Accept) return c;
  add(c.verdict, apart_in_itself(c.output));
  const bool in_place = same(c.output, c.input[0]);
  for (const Seen& input : c.input)
    if (!(in_place && same(c.output, input))) add(c.verdict, apart(c.output, input));
  for (const Seen* s : {&c.key_mask, &c.attention}) add(c.verdict, apart(c.output, *s));
  if (p.filter.flags & BNNSFlagsUseClientPtr) {
    for (int i = 0; i < 4; ++i) {
      add(c.verdict, apart(c.output, f.weights[i]));
      add(c.verdict, apart(c.output, f.bias[i]));
    }
    add(c.verdict, apart(c.output, f.key_bias));
    add(c.verdict, apart(c.output, f.value_bias));
  }
  return c;
}

std::vector<const Seen*> GradientsSeen::written() const {
  std::vector<const Seen*> all = {&target[0], &target[1], &target[2]};
  for (int i = 0; i < 4; ++i) all.push_back(&weights[i]), all.push_back(&bias[i]);
  all.push_back(&key_bias);
  all.push_back(&value_bias);
  return all;
}

GradientsSeen see_gradients(const Problem& p, const FilterSeen& f, const CallSeen& c,
                            const Call& call, bool cached) {
  GradientsSeen g;
  g.verdict = c.verdict;
  const Dims& d = f.dims;
  const int64_t N = int64_t(call.batch);
  const int64_t in[] = {d.E, d.kdim, d.vdim}, tokens[] = {d.T, d.S, d.S};
  add(g.verdict, must(call.delta[3]));
  if (g.verdict == Verdict::Refuse) return g;
  for (int i = 0; i < 4; ++i) {
    const Projection* to = call.delta[i];
    if (to && (i == 3 || to->target_desc.data)) {
      const Seen one = see_float(g.verdict, to->target_desc, 2);
      add(g.verdict, must(i == 3 ? one.is({d.T, d.E}) : one.is({tokens[i], in[i]})));
      g.target[i] = batched(one, N, to->target_desc.stride[2], one.data);
      add(g.verdict, g.target[i].verdict);
    }
    if (to && to->weights.data) {
      g.weights[i] = see_float(g.verdict, to->weights, i == 3 ? 2 : 3);
      add(g.verdict, must(i == 3 ? g.weights[i].is({d.H * d.Dv, d.E})
                                 : g.weights[i].is({in[i], i == 2 ? d.Dv : d.D, d.H})));
    }
    if (to && to->bias.data) {
      g.bias[i] = see_float(g.verdict, to->bias, i == 3 ? 1 : 2);
      add(g.verdict, must(f.bias[i] && (i == 3 ? g.bias[i].is({d.E})
                                               : g.bias[i].is({i == 2 ? d.Dv : d.D, d.H}))));
    }
    if (i == 3) {
      add(g.verdict, must(g.target[i].data || !g.target[i].elements()));
    } else {
      const bool given = call.input[i] || !c.input[i].elements();
      add(g.verdict, must(given || (cached && !g.weights[i])));
    }
  }
  const auto extra = [&](const Descriptor* to, Seen& seen, int64_t dim) {
    if (!to || !to->data) return;
    seen = see_float(g.verdict, *to, 2);
    add(g.verdict, must(f.key_bias && seen.is({dim, d.H})));
  };
  extra(call.key_bias_delta, g.key_bias, d.D);
  extra(call.value_bias_delta, g.value_bias, d.Dv);
  if (g.verdict == Verdict::Refuse) return g;

  const std::vector<const Seen*> written = g.written();
  std::vector<const Seen*> read = {&c.input[0], &c.input[1],  &c.input[2],
                                   &c.key_mask, &c.attention, &g.target[3]};
  if (p.filter.flags & BNNSFlagsUseClientPtr) {
    for (int i = 0; i < 4; ++i) read.push_back(&f.weights[i]), read.push_back(&f.bias[i]);
    read.push_back(&f.key_bias), read.push_back(&f.value_bias);
  }
  for (const Seen* s : written)
    if (*s) add(g.verdict, there(p.holds(*s)));
  if (g.target[3].data) add(g.verdict, there(p.holds(g.target[3])));
  if (g.verdict != Verdict::Accept) return g;
  for (size_t i = 0; i < written.size(); ++i) {
    add(g.verdict, apart_in_itself(*written[i]));
    for (const Seen* s : read) add(g.verdict, apart(*written[i], *s));
    for (size_t j = 0; j < i; ++j) {
      if (!*written[i] || !*written[j]) continue;
      if (i < 3 && same(*written[i], *written[j]))
        add(g.verdict, must(written[i]->adds == written[j]->adds));
      else
        add(g.verdict, apart(*written[i], *written[j]));
    }
  }
  return g;
}

Layer layer_of(const Problem& p, const FilterSeen& f) {
  Layer l;
  l.dims = f.dims;
  for (int i = 0; i < 4; ++i) l.weights[i] = f.weights[i].values(), l.bias[i] = f.bias[i].values();
  l.key_bias = f.key_bias.values(), l.value_bias = f.value_bias.values();
  l.zero_row = p.layer.add_zero_attn;
  const float dropout = p.layer.dropout;
  l.dropout = dropout > 0 && dropout < 1 ? double(dropout) : 0;
  l.seed = p.layer.seed;
  return l;
}

void add_call(Layer& l, const FilterSeen& f, const CallSeen& c) {
  l.dims.N = c.input[0].size[0];
  for (int i = 0; i < 3; ++i)
    if (c.input[i].data) l.input[i] = c.input[i].values();
  for (double x : c.key_mask.values()) l.hidden.push_back(x != 0);
  if (!c.attention) return;
  const Numbers given = c.attention.values();
  const size_t all = size_t(l.dims.N * f.dims.H * f.dims.T * f.dims.S);
  const bool hides = c.attention.type == BNNSDataTypeBoolean;
  for (size_t i = 0; i < all; ++i) {
    const double x = given[i % given.size()];
    l.added.push_back(!hides ? x : x != 0 ? -std::numeric_limits<double>::infinity() : 0);
  }
}

}  // namespace fuzz
