#include "problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

namespace fuzz {
namespace {

constexpr uint32_t kTypes[] = {BNNSDataTypeFloat32, BNNSDataTypeFloat16, BNNSDataTypeBFloat16};

int64_t width(Draws& draws) {
  constexpr int64_t kEdges[] = {15, 16, 17, 31, 32, 33, 64, 65, 80};
  return draws.flip(0.08) ? draws.pick(kEdges) : draws.from(1, 9);
}

double wild(Draws& draws) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kValues[] = {kInfinity, -kInfinity, NAN, -3.4028234663852886e38, 3e38, 1e-40};
  return draws.pick(kValues);
}

}  // namespace

Options Options::draw(Draws& draws) {
  Options o;
  o.batch = draws.flip(0.05) ? 0 : draws.from(1, 3);
  o.T = draws.from(1, 9), o.S = draws.from(1, 9);
  if (draws.flip(0.06)) {  // more than one tile
    o.T = draws.flip() ? draws.from(60, 70) : draws.from(1, 40);
    o.S = draws.flip() ? draws.from(60, 70) : draws.from(120, 140);
    if (draws.flip(0.2)) o.T = 130, o.S = draws.from(1, 300);
  } else if (draws.flip(0.04)) {
    o.T *= draws.below(2), o.S *= draws.below(2);
  } else if (draws.flip(0.1)) {  // a sequence at a time
    o.batch = draws.from(8, 14);
  }
  o.E = width(draws), o.kdim = width(draws), o.vdim = width(draws);
  o.H = draws.from(1, 3), o.D = width(draws), o.Dv = draws.flip() ? o.D : width(draws);
  while (o.H * (o.D + o.Dv) * (o.T * o.S + (o.T + o.S) * o.E) * o.batch > 150000) {
    if (o.batch > 1)
      o.batch = 1;
    else if (o.H > 1)
      o.H = 1;
    else
      o.E = o.D = o.Dv = o.kdim = o.vdim = 4, o.T = std::min<int64_t>(o.T, 70),
      o.S = std::min<int64_t>(o.S, 140);
  }
  o.types[0] = draws.flip(0.6) ? BNNSDataTypeFloat32 : draws.pick(kTypes);
  for (int i = 1; i < 3; ++i) o.types[i] = draws.flip(0.6) ? o.types[0] : draws.pick(kTypes);
  o.placing = {draws.flip(), draws.flip(), draws.flip(0.15)};
  for (bool& b : o.bias) b = draws.flip(0.6);
  o.extra_key = draws.flip(0.4), o.zero_row = draws.flip(0.3), o.key_mask = draws.flip(0.4);
  if (draws.flip()) o.attention = int(draws.from(2, 4)), o.attention_bool = draws.flip();
  o.accumulate = draws.flip(), o.client = draws.flip();
  o.shares_key = draws.flip(0.3), o.shares_query = draws.flip();
  if (o.shares_key) o.vdim = o.kdim;
  if (o.shares_key && o.shares_query) o.T = o.S, o.E = o.kdim;
  o.shares_query &= o.shares_key;
  o.in_place = draws.flip(0.15), o.wild = draws.flip(0.1);
  constexpr float kDropout[] = {0, 0, 0, 0.25f, 0.9f, 1e-6f, 1, -1, NAN};
  o.dropout = draws.pick(kDropout);
  return o;
}

Slot* Problem::make(Draws& draws, std::vector<int64_t> shape, bool has_batch, double scale,
                    bool bools) {
  const uint32_t type = bools ? uint32_t(BNNSDataTypeBoolean) : draws.pick(o.types);
  Placing how = o.placing;
  how.explicit_strides |= draws.flip(0.3);
  slots.push_back(place(draws, std::move(shape), has_batch ? o.batch : -1, type, how));
  Slot& s = slots.back();
  Seen seen = see(s.d, s.rank);
  if (has_batch) seen = batched(seen, o.batch, s.between, s.d.data);
  for (char* at : seen.addresses())
    store(at, type, bools ? double(draws.number() > 0.5) : draws.number() * scale);
  if (o.wild && !bools && draws.flip(0.1)) {
    const std::vector<char*> all = seen.addresses();
    if (!all.empty()) store(all[size_t(draws.below(int64_t(all.size())))], type, wild(draws));
  }
  return &s;
}

Problem::Problem(Draws& draws) : o(Options::draw(draws)) {
  make_arrays(draws);
  make_gradients(draws);
  keep();
}

void Problem::make_arrays(Draws& draws) {
  const int64_t tokens[] = {o.T, o.S, o.S}, in[] = {o.E, o.kdim, o.vdim};
  Projection* const of[] = {&layer.query, &layer.key, &layer.value, &layer.output};
  o.types[0] = draws.flip(0.7) ? o.types[0] : draws.pick(kTypes);
  for (int i = 0; i < 3; ++i) {
    const bool shares = i == 1 ? o.shares_query : i == 2 && o.shares_key;
    input[i] = shares ? input[i - 1] : make(draws, {tokens[i], in[i]}, true, 1, false);
    of[i]->target_desc = input[i]->d;
    of[i]->target_desc.data = nullptr;
    const int64_t dim = i == 2 ? o.Dv : o.D;
    of[i]->weights = make(draws, {in[i], dim, o.H}, false, 1 / std::sqrt(double(in[i])), false)->d;
    if (o.bias[i]) of[i]->bias = make(draws, {dim, o.H}, false, 1, false)->d;
  }
  const double scale = 1 / std::sqrt(double(o.H * o.Dv));
  layer.output.weights = make(draws, {o.H * o.Dv, o.E}, false, scale, false)->d;
  if (o.bias[3]) layer.output.bias = make(draws, {o.E}, false, 1, false)->d;
  output = o.in_place ? input[0] : make(draws, {o.T, o.E}, true, 1, false);
  layer.output.target_desc = output->d;
  layer.output.target_desc.data = nullptr;
  if (o.extra_key) {
    layer.key_attn_bias = make(draws, {o.D, o.H}, false, 1, false)->d;
    layer.value_attn_bias = make(draws, {o.Dv, o.H}, false, 1, false)->d;
  }
  layer.add_zero_attn = o.zero_row;
  layer.dropout = o.dropout;
  layer.seed = uint32_t(draws.from(1, 1 << 20));
  filter.flags = o.client ? BNNSFlagsUseClientPtr : 0;
  filter.n_threads = draws.flip(0.3) ? 2 : size_t(draws.below(2));

  call.batch = size_t(o.batch);
  for (int i = 0; i < 3; ++i) call.input[i] = input[i]->d.data, call.stride[i] = input[i]->between;
  call.output = output->d.data, call.output_stride = output->between;
  if (o.key_mask) {
    const Slot* s = make(draws, {o.S}, true, 1, true);
    key_mask = s->d;
    call.key_mask = &key_mask, call.key_mask_stride = s->between;
  }
  if (o.attention) {
    const std::vector<int64_t> all = {o.batch, o.H, o.T, o.S};
    Slot* s = make(draws, {all.end() - o.attention, all.end()}, false, 1, o.attention_bool);
    attention = s->d;
    call.attention = &attention;
    const double infinity = std::numeric_limits<double>::infinity();
    if (!o.attention_bool && draws.flip())
      for (char* at : see(attention, o.attention).addresses())
        if (draws.number() > 0.7) store(at, attention.data_type, -infinity);
  }
}

void Problem::make_gradients(Draws& draws) {
  const int64_t tokens[] = {o.T, o.S, o.S}, in[] = {o.E, o.kdim, o.vdim};
  const auto flag = [&](Slot* s) {
    s->d.flags = o.accumulate && draws.flip(0.7) ? BNNSNDArrayFlagBackpropAccumulate : 0;
    return s->d;
  };
  const Slot* twin = nullptr;
  for (int i = 0; i < 3; ++i) {
    Projection& to = delta[i];
    const bool shares = i == 1 ? o.shares_query : i == 2 && o.shares_key;
    if (!shares || !twin || draws.flip(0.3)) {
      Slot* s = make(draws, {tokens[i], in[i]}, true, 1, false);
      flag(s);
      twin = s;
    }
    to.target_desc = twin->d;
    to.target_desc.stride[2] = twin->between;
    const int64_t dim = i == 2 ? o.Dv : o.D;
    to.weights = flag(make(draws, {in[i], dim, o.H}, false, 1, false));
    if (o.bias[i]) to.bias = flag(make(draws, {dim, o.H}, false, 1, false));
    if (draws.flip(0.1)) to.target_desc.data = nullptr;
    if (draws.flip(0.1)) to.weights.data = nullptr;
    call.delta[i] = draws.flip(0.07) ? nullptr : &to;
  }
  d_output = make(draws, {o.T, o.E}, true, 1, false);
  delta[3].target_desc = d_output->d;
  delta[3].target_desc.stride[2] = d_output->between;
  delta[3].weights = flag(make(draws, {o.H * o.Dv, o.E}, false, 1, false));
  if (o.bias[3]) delta[3].bias = flag(make(draws, {o.E}, false, 1, false));
  call.delta[3] = &delta[3];
  if (!o.extra_key) return;
  key_bias_delta = flag(make(draws, {o.D, o.H}, false, 1, false));
  value_bias_delta = flag(make(draws, {o.Dv, o.H}, false, 1, false));
  call.key_bias_delta = draws.flip(0.1) ? nullptr : &key_bias_delta;
  call.value_bias_delta = draws.flip(0.1) ? nullptr : &value_bias_delta;
}

bool Problem::holds(const Seen& seen) const {
  if (!seen.elements()) return true;
  for (const Slot& s : slots)
    if (s.holds(seen.data, seen.bytes())) return true;
  return false;
}

void Problem::keep() {
  for (Slot& s : slots) s.keep();
}

void Problem::restore() {
  for (Slot& s : slots) std::copy(s.before.begin(), s.before.end(), s.memory.get());
}

bool Problem::untouched() const {
  for (const Slot& s : slots)
    if (!s.untouched()) return false;
  return true;
}

std::string Problem::text() const {
  std::ostringstream t;
  t << "batch " << o.batch << " T " << o.T << " S " << o.S << " E " << o.E << " kdim " << o.kdim
    << " vdim " << o.vdim << " H " << o.H << " D " << o.D << " Dv " << o.Dv << std::hex << " types "
    << o.types[0] << " " << o.types[1] << " " << o.types[2] << std::dec << " gaps "
    << o.placing.gaps << " explicit " << o.placing.explicit_strides << " misaligned "
    << o.placing.misaligned << " extra " << o.extra_key << o.zero_row << " masks " << o.key_mask
    << o.attention << o.attention_bool << " accumulate " << o.accumulate << " client " << o.client
    << " shares " << o.shares_key << o.shares_query << " in place " << o.in_place << " dropout "
    << o.dropout << " threads " << filter.n_threads << " wild " << o.wild;
  return t.str();
}

}  // namespace fuzz
