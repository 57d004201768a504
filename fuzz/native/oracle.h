// The layer of a filter in plain float64, forward and backward, every score in memory.
#pragma once

#include <cstdint>
#include <vector>

namespace fuzz {

using Numbers = std::vector<double>;

struct Dims {
  int64_t N = 0, T = 0, S = 0, E = 0, kdim = 0, vdim = 0, H = 0, D = 0, Dv = 0;
};

// Arrays in the order of their indices, as docs/bnns.md lists them; empty ones are absent.
struct Layer {
  Dims dims;
  Numbers input[3];              // query (N, T, E), key (N, S, kdim), value (N, S, vdim)
  Numbers weights[4], bias[4];   // (in, D, H), (D, H); of the output (H Dv, E), (E)
  Numbers key_bias, value_bias;  // (D, H), (Dv, H)
  std::vector<uint8_t> hidden;   // (N, S)
  Numbers added;                 // (N, H, T, S), -inf where a key is hidden
  bool zero_row = false;
  double dropout = 0;
  uint64_t seed = 0, counter = 0;
};

struct Attended {
  Numbers heads[3], p, keep, out,
      merged;  // (N, H, tokens, D); (N, H, T, S'); (N, T, E); (N, T, H Dv)
  std::vector<uint8_t> visible;
  double keep_scale = 1;
  int64_t columns = 0;  // S'
};

struct Gradients {
  Numbers input[3], weights[4], bias[4], key_bias, value_bias;
};

Attended forward(const Layer& layer);
Gradients backward(const Layer& layer, const Attended& a, const Numbers& d_out);

}  // namespace fuzz
