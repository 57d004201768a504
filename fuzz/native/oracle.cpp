#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fuzz {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

struct Words {
  uint32_t a, b;
};

// Philox 4x32-10 (Salmon et al., 2011): its first two words.
Words philox(uint64_t low, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  uint32_t c0 = uint32_t(low), c1 = uint32_t(low >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c0) * 0xD2511F53u, b = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0, c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b), c3 = uint32_t(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {c0, c1};
}

bool kept(Words row, uint32_t key, uint32_t threshold) {
  uint32_t x = row.a ^ (key >> 1) * 0x9E3779B9u;
  x ^= x >> 16, x *= 0x21F0AAADu, x ^= x >> 15;
  x += row.b;
  x *= 0xD35A2D97u, x ^= x >> 15;
  return (x >> (key & 1 ? 16 : 0) & 0xFFFF) >= threshold;
}

// (N, tokens, in) times (in, D, H), as (N, H, tokens, D), with room for more tokens.
Numbers project(const Layer& l, int i, int64_t tokens, int64_t room, int64_t in, int64_t dim) {
  const Dims& d = l.dims;
  Numbers y(size_t(d.N * d.H * room * dim));
  for (int64_t n = 0; n < d.N; ++n)
    for (int64_t h = 0; h < d.H; ++h)
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t j = 0; j < dim; ++j) {
          double sum = l.bias[i].empty() ? 0 : l.bias[i][size_t(j * d.H + h)];
          if (i == 0 || l.hidden.empty() || !l.hidden[size_t(n * tokens + t)])
            for (int64_t k = 0; k < in; ++k)
              sum += l.input[i][size_t((n * tokens + t) * in + k)] *
                     l.weights[i][size_t((k * dim + j) * d.H + h)];
          y[size_t(((n * d.H + h) * room + t) * dim + j)] = sum;
        }
  return y;
}

}  // namespace

Attended forward(const Layer& l) {
  const Dims& d = l.dims;
  Attended a;
  const bool extra = !l.key_bias.empty();
  const int64_t C = a.columns = d.S + extra + l.zero_row;
  a.heads[0] = project(l, 0, d.T, d.T, d.E, d.D);
  a.heads[1] = project(l, 1, d.S, C, d.kdim, d.D);
  a.heads[2] = project(l, 2, d.S, C, d.vdim, d.Dv);
  for (int64_t n = 0; extra && n < d.N; ++n)
    for (int64_t h = 0; h < d.H; ++h) {
      double* k = &a.heads[1][size_t(((n * d.H + h) * C + d.S) * d.D)];
      double* v = &a.heads[2][size_t(((n * d.H + h) * C + d.S) * d.Dv)];
      for (int64_t j = 0; j < d.D; ++j) k[j] = l.key_bias[size_t(j * d.H + h)];
      for (int64_t j = 0; j < d.Dv; ++j) v[j] = l.value_bias[size_t(j * d.H + h)];
    }

  const uint32_t threshold = uint32_t(std::min(65535.0, std::floor(l.dropout * 65536 + 0.5)));
  a.keep_scale = l.dropout > 0 ? 65536.0 / (65536.0 - threshold) : 1;
  const Words call =
      philox(l.counter, 0x6D756C74u, 0x68656164u, uint32_t(l.seed), uint32_t(l.seed >> 32));
  const double scale = 1 / std::sqrt(double(d.D));
  a.p.assign(size_t(d.N * d.H * d.T * C), 0);
  a.keep = a.p;
  a.visible.assign(a.p.size(), 0);
  a.merged.assign(size_t(d.N * d.T * d.H * d.Dv), 0);
  for (int64_t n = 0; n < d.N; ++n)
    for (int64_t h = 0; h < d.H; ++h)
      for (int64_t t = 0; t < d.T; ++t) {
        const size_t row = size_t(((n * d.H + h) * d.T + t) * C);
        const Words random = philox(uint64_t(t), uint32_t(h), uint32_t(n), call.a, call.b);
        double top = kNone, total = 0;
        bool nan = false, any = false;
        for (int64_t s = 0; s < C; ++s) {
          double score = 0, added = 0;
          if (s < d.S && !l.hidden.empty() && l.hidden[size_t(n * d.S + s)]) continue;
          if (s < d.S && !l.added.empty())
            added = l.added[size_t(((n * d.H + h) * d.T + t) * d.S + s)];
          if (added == kNone) continue;
          for (int64_t j = 0; j < d.D; ++j)
            score += a.heads[0][size_t(((n * d.H + h) * d.T + t) * d.D + j)] *
                     a.heads[1][size_t(((n * d.H + h) * C + s) * d.D + j)];
          score = score * scale + added;
          a.visible[row + size_t(s)] = any = true;
          a.p[row + size_t(s)] = score;
          nan |= std::isnan(score);
          top = std::max(top, score);
        }
        if (!any) continue;
        for (int64_t s = 0; s < C; ++s) {
          double& p = a.p[row + size_t(s)];
          if (a.visible[row + size_t(s)]) total += p = nan ? NAN : std::exp(p - top);
        }
        for (int64_t s = 0; s < C; ++s) {
          if (!a.visible[row + size_t(s)]) continue;
          const double p = a.p[row + size_t(s)] /= total;
          const uint32_t place = s < d.S             ? uint32_t(s)
                                 : extra && s == d.S ? 0xFFFFFFFEu
                                                     : 0xFFFFFFFFu;
          if (l.dropout > 0 && !kept(random, place, threshold)) continue;
          a.keep[row + size_t(s)] = 1;
          for (int64_t j = 0; j < d.Dv; ++j)
            a.merged[size_t((n * d.T + t) * d.H * d.Dv + h * d.Dv + j)] +=
                p * a.keep_scale * a.heads[2][size_t(((n * d.H + h) * C + s) * d.Dv + j)];
        }
      }

  a.out.assign(size_t(d.N * d.T * d.E), 0);
  for (int64_t x = 0; x < d.N * d.T; ++x)
    for (int64_t e = 0; e < d.E; ++e) {
      double sum = l.bias[3].empty() ? 0 : l.bias[3][size_t(e)];
      for (int64_t j = 0; j < d.H * d.Dv; ++j)
        sum += a.merged[size_t(x * d.H * d.Dv + j)] * l.weights[3][size_t(j * d.E + e)];
      a.out[size_t(x * d.E + e)] = sum;
    }
  return a;
}

Gradients backward(const Layer& l, const Attended& a, const Numbers& d_out) {
  const Dims& d = l.dims;
  const int64_t C = a.columns, width = d.H * d.Dv;
  Gradients g;
  g.weights[3].assign(size_t(width * d.E), 0);
  g.bias[3].assign(size_t(d.E), 0);
  Numbers d_merged(size_t(d.N * d.T * width));
  for (int64_t x = 0; x < d.N * d.T; ++x)
    for (int64_t e = 0; e < d.E; ++e) {
      const double o = d_out[size_t(x * d.E + e)];
      g.bias[3][size_t(e)] += o;
      for (int64_t j = 0; j < width; ++j) {
        g.weights[3][size_t(j * d.E + e)] += o * a.merged[size_t(x * width + j)];
        d_merged[size_t(x * width + j)] += o * l.weights[3][size_t(j * d.E + e)];
      }
    }

  Numbers d_heads[3];
  for (int i = 0; i < 3; ++i) d_heads[i].assign(a.heads[i].size(), 0);
  const double scale = 1 / std::sqrt(double(d.D));
  Numbers d_p(size_t(std::max<int64_t>(C, 1)));
  for (int64_t n = 0; n < d.N; ++n)
    for (int64_t h = 0; h < d.H; ++h)
      for (int64_t t = 0; t < d.T; ++t) {
        const size_t row = size_t(((n * d.H + h) * d.T + t) * C);
        const double* o = &d_merged[size_t((n * d.T + t) * width + h * d.Dv)];
        double delta = 0;
        for (int64_t s = 0; s < C; ++s) {
          d_p[size_t(s)] = 0;
          if (a.keep[row + size_t(s)] == 0) continue;
          const size_t at = size_t(((n * d.H + h) * C + s) * d.Dv);
          for (int64_t j = 0; j < d.Dv; ++j) {
            d_p[size_t(s)] += o[j] * a.heads[2][at + size_t(j)] * a.keep_scale;
            d_heads[2][at + size_t(j)] += o[j] * a.p[row + size_t(s)] * a.keep_scale;
          }
          delta += a.p[row + size_t(s)] * d_p[size_t(s)];
        }
        for (int64_t s = 0; s < C; ++s) {
          if (!a.visible[row + size_t(s)]) continue;
          const double ds = a.p[row + size_t(s)] * (d_p[size_t(s)] - delta) * scale;
          const size_t q = size_t(((n * d.H + h) * d.T + t) * d.D);
          const size_t k = size_t(((n * d.H + h) * C + s) * d.D);
          for (int64_t j = 0; j < d.D; ++j) {
            d_heads[0][q + size_t(j)] += ds * a.heads[1][k + size_t(j)];
            d_heads[1][k + size_t(j)] += ds * a.heads[0][q + size_t(j)];
          }
        }
      }

  const int64_t tokens[] = {d.T, d.S, d.S}, room[] = {d.T, C, C};
  const int64_t in[] = {d.E, d.kdim, d.vdim}, dim[] = {d.D, d.D, d.Dv};
  for (int i = 0; i < 3; ++i) {
    g.input[i].assign(l.input[i].size(), 0);
    g.weights[i].assign(l.weights[i].size(), 0);
    g.bias[i].assign(size_t(dim[i] * d.H), 0);
    for (int64_t n = 0; n < d.N; ++n)
      for (int64_t h = 0; h < d.H; ++h)
        for (int64_t t = 0; t < tokens[i]; ++t) {
          if (i > 0 && !l.hidden.empty() && l.hidden[size_t(n * tokens[i] + t)]) continue;
          for (int64_t j = 0; j < dim[i]; ++j) {
            const double y = d_heads[i][size_t(((n * d.H + h) * room[i] + t) * dim[i] + j)];
            g.bias[i][size_t(j * d.H + h)] += y;
            for (int64_t k = 0; k < in[i]; ++k) {
              const size_t x = size_t((n * tokens[i] + t) * in[i] + k);
              const size_t w = size_t((k * dim[i] + j) * d.H + h);
              g.input[i][x] += y * l.weights[i][w];
              g.weights[i][w] += y * l.input[i][x];
            }
          }
        }
  }
  if (l.key_bias.empty()) return g;
  for (int i = 1; i < 3; ++i) {
    Numbers& sum = i == 1 ? g.key_bias : g.value_bias;
    sum.assign(size_t(dim[i] * d.H), 0);
    for (int64_t n = 0; n < d.N; ++n)
      for (int64_t h = 0; h < d.H; ++h)
        for (int64_t j = 0; j < dim[i]; ++j)
          sum[size_t(j * d.H + h)] += d_heads[i][size_t(((n * d.H + h) * C + d.S) * dim[i] + j)];
  }
  return g;
}

}  // namespace fuzz
