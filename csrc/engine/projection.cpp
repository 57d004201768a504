#include "projection.h"

#include <algorithm>

namespace multihead {

constexpr int64_t kFeatures = 128;  // features of a tile that go through scratch at a time

template <class T>
int64_t Projection<T>::lanes(Tokens tokens, TileRef at) const {
  const Sequence& s = plan_.sequences[size_t(at.sequence)];
  return tile_lanes(tokens == Tokens::Queries ? s.queries : plan_.rows(s), at.tile);
}

template <class T>
int64_t Projection<T>::first_lane(Tokens tokens, TileRef at) const {
  const Sequence& s = plan_.sequences[size_t(at.sequence)];
  return (tokens == Tokens::Queries ? s.query_lane : s.key_lane) + at.tile * kTile;
}

// Forward

template <class T>
void Projection<T>::add_in(std::vector<Phase>& phases, const Rows<const T>& x, Tokens tokens,
                           std::vector<ProjectionTarget<T>> targets) {
  const int64_t features = targets[0].weights.features(), H = plan_.heads;
  Arena count;
  count.take<T>(features * kTile);
  memory_.need(count.used());
  const int64_t units = int64_t(targets.size()) * H;  // heads to compute for each tile
  const int64_t split = parts(int64_t(tiles(tokens).size()), units);
  const int64_t tasks = int64_t(tiles(tokens).size()) * split;
  auto run = [=, this, targets = std::move(targets)](int64_t task, int worker) {
    const TileRef at = tiles(tokens)[size_t(task / split)];
    const int64_t part = task % split;
    const Sequence& s = plan_.sequences[size_t(at.sequence)];
    const int64_t width = lanes(tokens, at);
    T* panel = memory_.of(worker).take<T>(features * kTile);
    const T* from[kTile];
    rows(tokens, x, at, from);
    kernels_.pack(panel, width, width, from, x.stride, features);
    for (int64_t u = units * part / split; u < units * (part + 1) / split; ++u) {
      const ProjectionTarget<T>& target = targets[size_t(u / H)];
      const View &w = target.weights.weight, &b = target.weights.bias;
      const int64_t h = u % H, D = w.size[1];
      T* tile = target.tiles + (target.by_head ? plan_.key_tile_by_head(s, h, at.tile, D)
                                               : plan_.query_tile(s, h, at.tile, D));
      Gemm<T> g{D,           width,       features, w.as<T>() + h * w.stride[0],
                w.stride[1], w.stride[2], panel,    width,
                tile,        width};
      if (b) {
        g.init = Init::Bias;
        g.start = b.as<T>() + h * b.stride[0];
        g.start_stride = b.stride[1];
      }
      kernels_.gemm(g);
    }
  };
  phases.push_back({tasks, std::move(run)});
}

template <class T>
void Projection<T>::add_extra_rows(std::vector<Phase>& phases, const View& bias_k,
                                   const View& bias_v, T* k, T* v) {
  if (plan_.extra() == 0) return;
  const auto write = [this](T* base, const View& bias, int64_t dim, const Sequence& s) {
    for (int64_t h = 0; h < plan_.heads; ++h)
      for (int64_t key = s.keys; key < plan_.rows(s); ++key) {
        const int64_t tile = key / kTile, width = tile_lanes(plan_.rows(s), tile);
        T* at = base + plan_.key_tile_by_head(s, h, tile, dim) + key % kTile;
        const bool given = bias && key == s.keys;
        for (int64_t d = 0; d < dim; ++d)
          at[d * width] = given ? bias.as<T>()[h * bias.stride[0] + d * bias.stride[1]] : T(0);
      }
  };
  const int64_t tasks = int64_t(plan_.sequences.size());
  auto run = [=, this](int64_t task, int) {
    const Sequence& s = plan_.sequences[size_t(task)];
    write(k, bias_k, plan_.head_dim, s);
    write(v, bias_v, plan_.value_dim, s);
  };
  phases.push_back({tasks, std::move(run)});
}

template <class T>
void Projection<T>::add_out(std::vector<Phase>& phases, const HeadWeights& weights,
                            const View& bias, const T* tiles_in, const Rows<T>& y) {
  const View& w = weights.weight;
  const int64_t features = w.size[2], inner = w.size[0] * w.size[1];
  Arena count;
  count.take<T>(kFeatures * kTile);
  memory_.need(count.used());
  const int64_t blocks = divide_up(features, kFeatures);
  const int64_t split = parts(int64_t(plan_.query_tiles.size()), blocks);
  const int64_t tasks = int64_t(plan_.query_tiles.size()) * split;
  auto run = [=, this](int64_t task, int worker) {
    const TileRef at = plan_.query_tiles[size_t(task / split)];
    const int64_t part = task % split, width = lanes(Tokens::Queries, at);
    const T* tile = tiles_in + first_lane(Tokens::Queries, at) * inner;
    T* block = memory_.of(worker).template take<T>(kFeatures * kTile);
    T* to[kTile];
    y.of_queries(plan_, at, to);
    for (int64_t i = blocks * part / split; i < blocks * (part + 1) / split; ++i) {
      const int64_t first = i * kFeatures, n = smaller(features - first, kFeatures);
      Gemm<T> g{n,           width,       inner, w.as<T>() + first * w.stride[2],
                w.stride[2], w.stride[1], tile,  width,
                block,       width};
      if (bias) {
        g.init = Init::Bias;
        g.start = bias.as<T>() + first * bias.stride[0];
        g.start_stride = bias.stride[0];
      }
      kernels_.gemm(g);
      T* rows_at[kTile];
      for (int64_t r = 0; r < kTile; ++r) rows_at[r] = to[r] ? to[r] + first * y.stride : nullptr;
      kernels_.unpack(rows_at, y.stride, block, width, width, n, false);
    }
  };
  phases.push_back({tasks, std::move(run)});
}

// Backward

template <class T>
HeadWeights Projection<T>::layout_turned(Arena& arena, const HeadWeights& weights) const {
  constexpr int64_t kFar = 512, kMany = 512;
  const View& w = weights.weight;
  const int64_t rows = w.size[0] * w.size[1], features = w.size[2];
  const bool by_row = w.stride[2] == 1 && w.stride[0] == w.size[1] * w.stride[1];
  const bool by_column = w.stride[1] == 1 && w.stride[0] == w.size[1];
  const int64_t pitch = by_row ? w.stride[1] : w.stride[2];
  if (!(by_row || by_column) || pitch < kFar || plan_.query_lanes < kMany || rows % kLane != 0 ||
      features % kLane != 0)
    return weights;
  HeadWeights turned = weights;
  View& v = turned.weight;
  v.data = arena.take<T>(rows * features);
  v.stride[1] = by_row ? 1 : features;
  v.stride[0] = v.size[1] * v.stride[1];
  v.stride[2] = by_row ? rows : 1;
  return turned;
}

template <class T>
void Projection<T>::add_turn(std::vector<Phase>& phases, const HeadWeights& weights,
                             const HeadWeights& turned) {
  const View &w = weights.weight, &v = turned.weight;
  if (w.stride[2] == v.stride[2]) return;  // not turned
  const bool by_row = w.stride[2] == 1;
  const int64_t rows = w.size[0] * w.size[1], features = w.size[2];
  const int64_t strips = by_row ? rows : features, columns = by_row ? features : rows;
  const int64_t pitch = by_row ? w.stride[1] : w.stride[2];
  auto run = [=, this](int64_t task, int) {
    const T* from[kTile] = {};
    const int64_t first = task * kTile, n = smaller(strips - first, kTile);
    for (int64_t i = 0; i < n; ++i) from[i] = w.as<const T>() + (first + i) * pitch;
    kernels_.pack(v.as<T>() + first, strips, n, from, 1, columns);
  };
  phases.push_back({divide_up(strips, kTile), std::move(run)});
}

template <class T>
void Projection<T>::add_out_backward(std::vector<Phase>& phases, const HeadWeights& weights,
                                     const Rows<const T>& d_y, const T* tiles_in, T* d_tiles,
                                     T* delta) {
  const View& w = weights.weight;
  const int64_t features = w.size[2], H = w.size[0], D = w.size[1];
  Arena count;
  count.take<T>(features * kTile);
  memory_.need(count.used());
  const int64_t split = parts(int64_t(plan_.query_tiles.size()), H);
  const int64_t tasks = int64_t(plan_.query_tiles.size()) * split;
  auto run = [=, this](int64_t task, int worker) {
    const TileRef at = plan_.query_tiles[size_t(task / split)];
    const Sequence& s = plan_.sequences[size_t(at.sequence)];
    const int64_t part = task % split, width = lanes(Tokens::Queries, at);
    const int64_t base = first_lane(Tokens::Queries, at) * H * D;
    T* panel = memory_.of(worker).template take<T>(features * kTile);
    const T* from[kTile];
    d_y.of_queries(plan_, at, from);
    kernels_.pack(panel, width, width, from, d_y.stride, features);
    for (int64_t h = H * part / split; h < H * (part + 1) / split; ++h) {
      T* d_tile = d_tiles + base + h * D * width;
      kernels_.gemm({D, width, features, w.as<T>() + h * w.stride[0], w.stride[1], w.stride[2],
                     panel, width, d_tile, width});
      kernels_.delta(delta + plan_.query_row(s, h, at.tile), d_tile,
                     tiles_in + base + h * D * width, D, width);
    }
  };
  phases.push_back({tasks, std::move(run)});
}

template <class T>
void Projection<T>::add_in_backward(std::vector<Phase>& phases, const HeadWeights& weights,
                                    const T* d_tiles, Tokens tokens, const Rows<T>& d_x,
                                    bool accumulate) {
  const View& w = weights.weight;
  const int64_t features = w.size[2], H = w.size[0], D = w.size[1];
  Arena count;
  count.take<T>(kFeatures * kTile);
  memory_.need(count.used());
  const int64_t blocks = divide_up(features, kFeatures);
  const int64_t split = parts(int64_t(tiles(tokens).size()), blocks);
  const int64_t tasks = int64_t(tiles(tokens).size()) * split;
  auto run = [=, this](int64_t task, int worker) {
    const TileRef at = tiles(tokens)[size_t(task / split)];
    const int64_t part = task % split, width = lanes(tokens, at);
    const T* tile = d_tiles + first_lane(tokens, at) * H * D;
    T* block = memory_.of(worker).template take<T>(kFeatures * kTile);
    T* to[kTile];
    tokens == Tokens::Queries ? d_x.of_queries(plan_, at, to) : d_x.of_keys(plan_, at, to);
    const bool one_product = w.stride[0] == D * w.stride[1];  // heads follow each other
    const int64_t inner = one_product ? H * D : D, products = one_product ? 1 : H;
    for (int64_t i = blocks * part / split; i < blocks * (part + 1) / split; ++i) {
      const int64_t first = i * kFeatures, n = smaller(features - first, kFeatures);
      for (int64_t h = 0; h < products; ++h)
        kernels_.gemm({n, width, inner, w.as<T>() + h * w.stride[0] + first * w.stride[2],
                       w.stride[2], w.stride[1], tile + h * inner * width, width, block, width,
                       h == 0 ? Init::Zero : Init::Load});
      T* rows_at[kTile];
      for (int64_t r = 0; r < kTile; ++r) rows_at[r] = to[r] ? to[r] + first * d_x.stride : nullptr;
      kernels_.unpack(rows_at, d_x.stride, block, width, width, n, accumulate);
    }
  };
  phases.push_back({tasks, std::move(run)});
  if (tokens == Tokens::Queries || accumulate) return;
  const int64_t sequences = int64_t(plan_.sequences.size());
  auto clear = [=, this](int64_t b, int) {
    const Sequence& s = plan_.sequences[size_t(b)];
    int64_t next = 0;  // of the keys that padding left
    for (int64_t j = 0; j < s.source; ++j) {
      if (next < s.keys && (s.positions ? s.positions[next] : next) == j) {
        ++next;
        continue;
      }
      T* row = d_x.row(b, s.first_key + j);
      for (int64_t c = 0; c < features; ++c) row[c * d_x.stride] = T(0);
    }
  };
  phases.push_back({sequences, std::move(clear)});
}

template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
