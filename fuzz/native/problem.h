// One filter and its calls, drawn from an input: arrays, the structures that the functions take,
// and what these say, seen anew after a word of them was spoiled.
#pragma once

#include <deque>
#include <string>

#include "descriptors.h"
#include "oracle.h"

namespace fuzz {

using Projection = BNNSMHAProjectionParameters;

struct Options {
  int64_t batch = 1, T = 1, S = 1, E = 1, kdim = 1, vdim = 1, H = 1, D = 1, Dv = 1;
  uint32_t types[3] = {};  // of which arrays are
  Placing placing;
  bool bias[4] = {}, extra_key = false, zero_row = false, key_mask = false;
  int attention = 0;  // its indices; 0: none
  bool attention_bool = false, accumulate = false, client = false;
  bool shares_key = false, shares_query = false, in_place = false, wild = false;
  float dropout = 0;

  static Options draw(Draws& draws);
};

// The parameters of both functions.
struct Call {
  size_t batch = 0;
  const void* input[3] = {};
  size_t stride[3] = {};
  const Descriptor *key_mask = nullptr, *attention = nullptr;
  size_t key_mask_stride = 0;
  void* output = nullptr;
  size_t output_stride = 0;
  Projection* delta[4] = {};
  Descriptor *key_bias_delta = nullptr, *value_bias_delta = nullptr;
};

struct Problem {
  Options o;
  std::deque<Slot> slots;
  Slot *input[3] = {}, *output = nullptr, *d_output = nullptr;
  BNNSLayerParametersMultiheadAttention layer{};
  BNNSFilterParameters filter{};
  Projection delta[4] = {};
  Descriptor key_mask{}, attention{}, key_bias_delta{}, value_bias_delta{};
  Call call;

  explicit Problem(Draws& draws);
  Problem(const Problem&) = delete;

  bool holds(const Seen& seen) const;  // whether all of its elements are in an array of ours
  void keep();                         // all arrays as they are
  void restore();                      // as they were
  bool untouched() const;
  std::string text() const;

 private:
  Slot* make(Draws& draws, std::vector<int64_t> shape, bool has_batch, double scale, bool bools);
  void make_arrays(Draws& draws);
  void make_gradients(Draws& draws);
};

// What a filter, a forward and a backward say, and what the library owes them.
struct FilterSeen {
  Verdict verdict = Verdict::Accept;
  Dims dims;
  Seen target[4], weights[4], bias[4], key_bias, value_bias;
};
struct CallSeen {
  Verdict verdict = Verdict::Accept;
  Seen input[3], key_mask, attention, output;
};
struct GradientsSeen {
  Verdict verdict = Verdict::Accept;
  Seen target[4], weights[4], bias[4], key_bias, value_bias;

  std::vector<const Seen*> written() const;
};

FilterSeen see_filter(const Problem& p);
CallSeen see_call(const Problem& p, const FilterSeen& f, const Call& call, bool forward);
GradientsSeen see_gradients(const Problem& p, const FilterSeen& f, const CallSeen& c,
                            const Call& call, bool cached);

// The numbers of all of them.
Layer layer_of(const Problem& p, const FilterSeen& f);
void add_call(Layer& layer, const FilterSeen& f, const CallSeen& c);

// Changes one word of what create (0), forward (1) or backward (2) is given; says which.
std::string spoil(Draws& draws, Problem& p, int stage);

}  // namespace fuzz
