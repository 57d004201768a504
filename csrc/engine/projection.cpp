#include "projection.h"

#include <algorithm>

#include "wanted.h"

namespace multihead {

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

template <class T>
std::vector<int64_t> Projection<T>::begins(Tokens tokens, int64_t split) const {
  return plan_.begins([&](const Sequence& s) {
    return split * tiles_of(tokens == Tokens::Queries ? s.queries : s.keys);
  });
}

// Forward

template <class T>
void Projection<T>::add_in(std::vector<Phase>& phases, const Rows<const T>& x, Tokens tokens,
                           std::vector<ProjectionTarget<T>> targets) {
  const int64_t features = targets[0].weights.k(), H = plan_.heads;
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
    const int64_t rows_apart = round_up(plan_.rows(s), kLane);
    // One set of weights at a time: what a pass over a block of k adds to must stay in L2.
    for (int64_t first = units * part / split, last = units * (part + 1) / split; first < last;) {
      const ProjectionTarget<T>& target = targets[size_t(first / H)];
      const int64_t end = smaller(last, (first / H + 1) * H);
      for_depth(features, [&](int64_t k0, int64_t depth) {
        for (int64_t h = first % H; h < first % H + end - first; ++h) {
          const int64_t D = target.weights.rows(h);
          T* tile = target.tiles + (target.by_head ? plan_.key_tile_by_head(s, h, at.tile, D)
                                                   : plan_.query_tile(s, h, at.tile, D));
          const bool last_head = h + 1 == first % H + end - first;
          Wanted<1> wanted;  // where the next head goes
          if (k0 == 0 && !last_head)
            wanted.add(tile + (target.by_head ? rows_apart : width) * D, D * width);
          kernels_.gemm(
              target.weights.product(h, k0, depth, panel, width, tile, false, wanted.ahead()));
        }
      });
      first = end;
    }
  };
  phases.push_back({tasks, std::move(run), begins(tokens, split)});
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
  phases.push_back({tasks, std::move(run), plan_.begins([](const Sequence&) { return 1; })});
}

template <class T>
void Projection<T>::combine(const std::vector<ProjectionSource<T>>& sources, Tokens tokens,
                            TileRef at, int64_t begin, int64_t end, T* block, Ahead* last) const {
  const int64_t width = lanes(tokens, at);
  bool adds = false;
  for (const ProjectionSource<T>& source : sources) {
    const Factor<T>& w = source.weights;
    const T* tile = source.tiles + first_lane(tokens, at) * w.k();
    for_depth(w.k(), [&](int64_t k0, int64_t depth) {
      Wanted<1> wanted;  // the tile's next rows
      wanted.add(tile + (k0 + depth) * width, smaller(w.k() - k0 - depth, kDepth) * width);
      Ahead* const ahead = k0 + depth < w.k() ? wanted.ahead() : last;
      for (int64_t g = begin; g < end; ++g) {
        T* rows_of_group = block + (w.first_row(g) - w.first_row(begin)) * width;
        kernels_.gemm(w.product(g, k0, depth, tile, width, rows_of_group, adds, ahead));
      }
    });
    adds = true;
  }
}

template <class T>
void Projection<T>::add_out(std::vector<Phase>& phases, std::vector<ProjectionSource<T>> sources,
                            Tokens tokens, const Rows<T>& y, bool accumulate) {
  const Factor<T>& w = sources[0].weights;
  const int64_t features = w.m(), groups = w.groups();
  Arena count;
  count.take<T>(features * kTile);
  memory_.need(count.used());
  const int64_t split = parts(int64_t(tiles(tokens).size()), groups);
  const int64_t tasks = int64_t(tiles(tokens).size()) * split;
  auto run = [=, this, sources = std::move(sources)](int64_t task, int worker) {
    const TileRef at = tiles(tokens)[size_t(task / split)];
    const Factor<T>& weights = sources[0].weights;
    const int64_t part = task % split, width = lanes(tokens, at);
    const int64_t begin = groups * part / split, end = groups * (part + 1) / split;
    const int64_t first = weights.first_row(begin),
                  n = smaller(weights.first_row(end), features) - first;
    T* block = memory_.of(worker).template take<T>(features * kTile);
    T* to[kTile];
    tokens == Tokens::Queries ? y.of_queries(plan_, at, to) : y.of_keys(plan_, at, to);
    Wanted<kTile> wanted;  // where the rows go
    for (int64_t r = 0; r < kTile; ++r) {
      if (!to[r]) continue;
      to[r] += first * y.stride;
      if (y.stride == 1) wanted.add(to[r], n);
    }
    combine(sources, tokens, at, begin, end, block, wanted.ahead());
    kernels_.unpack(to, y.stride, block, width, width, n, accumulate);
  };
  phases.push_back({tasks, std::move(run), begins(tokens, split)});
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
      T* row = y.row(b, s.first_key + j);
      for (int64_t c = 0; c < features; ++c) row[c * y.stride] = T(0);
    }
  };
  phases.push_back({sequences, std::move(clear), plan_.begins([](const Sequence&) { return 1; })});
}

// Backward

template <class T>
void Projection<T>::add_out_backward(std::vector<Phase>& phases, const Factor<T>& weights,
                                     const Rows<const T>& d_y, const T* tiles_in, T* d_tiles,
                                     T* delta) {
  const int64_t features = weights.k(), H = plan_.heads, D = plan_.value_dim;
  Arena count;
  count.take<T>(features * kTile);
  memory_.need(count.used());
  const int64_t split = parts(int64_t(plan_.query_tiles.size()), H);
  const int64_t tasks = int64_t(plan_.query_tiles.size()) * split;
  auto run = [=, this](int64_t task, int worker) {
    const TileRef at = plan_.query_tiles[size_t(task / split)];
    const Sequence& s = plan_.sequences[size_t(at.sequence)];
    const int64_t part = task % split, width = lanes(Tokens::Queries, at);
    const int64_t begin = H * part / split, end = H * (part + 1) / split;
    const int64_t base = first_lane(Tokens::Queries, at) * H * D;
    T* panel = memory_.of(worker).template take<T>(features * kTile);
    const T* from[kTile];
    d_y.of_queries(plan_, at, from);
    kernels_.pack(panel, width, width, from, d_y.stride, features);
    for_depth(features, [&](int64_t k0, int64_t depth) {
      for (int64_t h = begin; h < end; ++h) {
        T* d_tile = d_tiles + base + h * D * width;
        Wanted<2> wanted;  // where the next head goes, and what delta reads
        if (k0 == 0 && h + 1 < end) wanted.add(d_tile + D * width, D * width);
        if (k0 + depth == features) wanted.add(tiles_in + base + h * D * width, D * width);
        kernels_.gemm(weights.product(h, k0, depth, panel, width, d_tile, false, wanted.ahead()));
      }
    });
    for (int64_t h = begin; h < end; ++h)
      kernels_.delta(delta + plan_.query_row(s, h, at.tile), d_tiles + base + h * D * width,
                     tiles_in + base + h * D * width, D, width);
  };
  phases.push_back({tasks, std::move(run), begins(Tokens::Queries, split)});
}

template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
