#include "problem.h"

namespace fuzz {
namespace {

// A word in the place of another: near it, at a limit, or anything.
uint64_t another(Draws& draws, uint64_t old) {
  constexpr uint64_t kLimits[] = {0,          1,          2,          0x7FFFFFFF,
                                  0x80000000, 0xFFFFFFFF, 1ull << 32, (1ull << 46) + 1,
                                  1ull << 47, 1ull << 62, 1ull << 63, ~0ull};
  switch (draws.below(6)) {
    case 0:
      return old + 1;
    case 1:
      return old - 1;
    case 2:
      return old * 2;
    case 3:
      return old ^ 1ull << draws.below(64);
    case 4:
      return draws.pick(kLimits);
    default:
      return draws.word();
  }
}

template <class T>
void change(Draws& draws, T& word) {
  word = T(another(draws, uint64_t(word)));
}

// An address: none, one that is not aligned, or one of another array.
void* another(Draws& draws, Problem& p, void* old) {
  if (draws.flip(0.3)) return nullptr;
  char* const at = static_cast<char*>(
      draws.flip(0.3) ? old : p.slots[size_t(draws.below(int64_t(p.slots.size())))].d.data);
  return at ? at + draws.below(6) : at;
}

std::string spoil_descriptor(Draws& draws, Problem& p, Descriptor& d) {
  const int slot = int(draws.below(draws.flip(0.9) ? 4 : BNNS_MAX_TENSOR_DIMENSION));
  constexpr uint32_t kLayouts[] = {0x10000, 0x18000, 0x18001, 0x20000, 0x20001, 0x28000, 0x28001,
                                   0x30001, 0x30002, 0x30003, 0x38000, 0x38001, 0x48000, 0x48001};
  constexpr uint32_t kTypes[] = {0x10010, 0x10020, 0x18010, 0x20008,  0x20020,
                                 0x20040, 0x40008, 0x40040, 0x100008, 0x10040};
  switch (draws.below(8)) {
    case 0:
      change(draws, d.flags);
      return "flags";
    case 1:
      d.layout = draws.flip(0.7) ? draws.pick(kLayouts) : uint32_t(another(draws, d.layout));
      return "layout";
    case 2:
      d.data_type = draws.flip(0.7) ? draws.pick(kTypes) : uint32_t(another(draws, d.data_type));
      return "data_type";
    case 3:
    case 4:
      change(draws, d.size[slot]);
      return "size";
    case 5:
      d.data = another(draws, p, d.data);
      return "data";
    case 6: {  // what nothing reads, and all words of it
      uint8_t* const bytes = reinterpret_cast<uint8_t*>(&d);
      void* const data = d.data;
      for (size_t i = 0; i < sizeof d; ++i)
        if (draws.word() % 4 == 0) bytes[i] = uint8_t(draws.word());
      d.data = data;
      return "bytes";
    }
    default:
      change(draws, d.stride[slot]);
      return "stride";
  }
}

std::string spoil_projection(Draws& draws, Problem& p, Projection& of) {
  Descriptor* const parts[] = {&of.target_desc, &of.weights, &of.bias};
  return spoil_descriptor(draws, p, *parts[draws.below(3)]);
}

std::string spoil_layer(Draws& draws, Problem& p) {
  auto& l = p.layer;
  Projection* const of[] = {&l.query, &l.key, &l.value, &l.output};
  switch (draws.below(8)) {
    case 0:
      return spoil_descriptor(draws, p, draws.flip() ? l.key_attn_bias : l.value_attn_bias);
    case 1:
      change(draws, p.filter.flags);
      return "filter flags";
    case 2:
      change(draws, p.filter.n_threads);
      return "n_threads";
    default:
      return spoil_projection(draws, p, *of[draws.below(4)]);
  }
}

std::string spoil_apply(Draws& draws, Problem& p) {
  Call& c = p.call;
  switch (draws.below(7)) {
    case 0:
      change(draws, c.batch);
      return "batch_size";
    case 1: {
      const int64_t i = draws.below(3);
      c.input[i] = another(draws, p, const_cast<void*>(c.input[i]));
      return "input";
    }
    case 2:
      change(draws, c.stride[draws.below(3)]);
      return "input stride";
    case 3:
      change(draws, c.key_mask_stride);
      return "key_mask_stride";
    case 4:
      if (c.key_mask) return "key_mask " + spoil_descriptor(draws, p, p.key_mask);
      c.key_mask = &p.attention;
      return "key_mask";
    default:
      if (c.attention) return "attention " + spoil_descriptor(draws, p, p.attention);
      c.attention = draws.flip() ? &p.key_mask : &p.attention;
      return "attention";
  }
}

}  // namespace

std::string spoil(Draws& draws, Problem& p, int stage) {
  if (stage == 0) return "create: " + spoil_layer(draws, p);
  Call& c = p.call;
  if (draws.flip(0.4)) return "apply: " + spoil_apply(draws, p);
  if (stage == 1) {
    if (draws.flip()) {
      change(draws, c.output_stride);
      return "forward: output_stride";
    }
    c.output = another(draws, p, c.output);
    return "forward: output";
  }
  if (draws.flip(0.2)) {
    const int64_t i = draws.below(4);
    c.delta[i] = draws.flip() ? nullptr : &p.delta[draws.below(4)];
    return "backward: delta";
  }
  if (draws.flip(0.1)) {
    c.key_bias_delta = draws.flip() ? &p.key_bias_delta : &p.value_bias_delta;
    return "backward: key_attn_bias_delta";
  }
  if (draws.flip(0.2))
    return "backward: bias delta " +
           spoil_descriptor(draws, p, draws.flip() ? p.key_bias_delta : p.value_bias_delta);
  return "backward: " + spoil_projection(draws, p, p.delta[draws.below(4)]);
}

}  // namespace fuzz
