#include "projection.h"

#include <algorithm>

namespace multihead {

// A tile of so many features, and sums that are no tile: of a head, or of a group of features.
template <class E>
struct Projection<E>::Scratch {
  E* tile;
  Acc<E>* sums;

  Scratch(Arena& arena, const Projection& p, int64_t features)
      : tile(arena.take<E>(p.plan_.layout.size(features, kTile))),
        sums(p.kernels_.sums_are_tiles ? as_sums<E>(tile)
                                       : arena.take<Acc<E>>(kTile * p.rows_of_sums())) {}
};

template <class E>
int64_t Projection<E>::rows_of_sums() const {
  return larger(PackedWeights<E>::kFeatureGroup, larger(plan_.heads.dim, plan_.heads.value_dim));
}

template <class E>
size_t Projection<E>::scratch(int64_t features) const {
  Arena none;
  Scratch(none, *this, features);
  return none.used();
}

// A phase with tasks for each tile: the work on it is cut so that all workers have some.
template <class E>
template <class F>
Phase Projection<E>::by_tile(Tokens tokens, int64_t units, F run) const {
  const std::vector<TileRef>& tiles = plan_.tiles(tokens);
  const int64_t n = int64_t(tiles.size());
  const int64_t wanted = divide_up(6 * memory_.workers(), larger(n, 1));
  const int64_t split = wanted < 1 ? 1 : smaller(wanted, units);
  auto task_of = [this, &tiles, units, split, run = std::move(run)](int64_t task, int worker) {
    const int64_t part = task % split;
    run(Part{tiles[size_t(task / split)], units * part / split, units * (part + 1) / split},
        memory_.of(worker));
  };
  auto begin = plan_.begins([&](const Sequence& s) { return split * tiles_of(s.tokens(tokens)); });
  return {n * split, std::move(task_of), std::move(begin)};
}

// Forward

template <class E>
void Projection<E>::add_in(std::vector<Phase>& phases, const View& x, Tokens tokens,
                           std::vector<ProjectionTarget<E>> targets) const {
  const int64_t units = int64_t(targets.size()) * plan_.heads.count;  // heads for each tile
  phases.push_back(by_tile(tokens, units,
                           [=, this, targets = std::move(targets)](const Part& part, Arena arena) {
                             in(part, x, tokens, targets, arena);
                           }));
}

template <class E>
void Projection<E>::in(const Part& part, const View& x, Tokens tokens,
                       const std::vector<ProjectionTarget<E>>& targets, Arena arena) const {
  using Depth = typename PackedWeights<E>::Depth;
  const TileLayout& layout = plan_.layout;
  const int64_t H = plan_.heads.count, width = lanes(tokens, part.at);
  const int64_t features = x.size[x.rank - 1];
  const Scratch scratch(arena, *this, features);
  E* const panel = scratch.tile;
  const TokenRows source = rows(x, tokens, part.at);
  void* from[kTile];
  source.tile(part.at.tile, plan_.sequence(part.at).tokens(tokens), from);
  kernels_.pack(panel, width, source.source(from), features, TileOf::Tokens);
  // One set of weights at a time: what a pass over a block of k adds to must stay in L2.
  for (int64_t first = part.begin; first < part.end;) {
    const ProjectionTarget<E>& target = targets[size_t(first / H)];
    const int64_t last = smaller(part.end, (first / H + 1) * H), end = last - first / H * H;
    const auto tile_of = [&](int64_t head) {
      const TileAt at = place(part.at, head);
      const int64_t dim = target.weights.rows(head);
      return target.tiles +
             (target.what == TileOf::Tokens ? plan_.query_tile(at, dim)
                                            : plan_.key_tile_by_head(at, dim));
    };
    for_depth(target.weights, kernels_.sums_are_tiles, [&](Depth depth) {
      for (int64_t h = first % H; h < end; ++h) {
        PrefetchList<1> list;  // where the next head goes
        if (depth.first == 0 && h + 1 < end)
          list.add(tile_of(h + 1), layout.size(target.weights.rows(h + 1), width));
        TileGemm<E> g = target.weights.product(h, depth, panel + layout.size(depth.first, width),
                                               width, sums_of(scratch, tile_of(h)), false);
        g.prefetch = list.get();
        kernels_.tile_gemm(g);
        settle(g, tile_of(h), target.what);
      }
    });
    first = last;
  }
}

// Where a product puts the sums of a tile: there, if they are one.
template <class E>
Acc<E>* Projection<E>::sums_of(const Scratch& scratch, E* tile) const {
  return kernels_.sums_are_tiles ? as_sums<E>(tile) : scratch.sums;
}

// And the tile, if they are not.
template <class E>
void Projection<E>::settle(const TileGemm<E>& product, E* tile, TileOf what) const {
  if (!kernels_.sums_are_tiles)
    kernels_.tile_of_sums(tile, product.c, product.lanes, product.m, what);
}

template <class E>
void Projection<E>::add_extra_rows(std::vector<Phase>& phases, const View& bias_k,
                                   const View& bias_v, const AttentionTiles<E>& tiles) const {
  if (plan_.extra_keys() == 0) return;
  const auto write = [this](E* base, const View& bias, const TileLayout& layout, int64_t dim,
                            int64_t sequence) {
    const Sequence& s = plan_.sequences[size_t(sequence)];
    for (int64_t h = 0; h < plan_.heads.count; ++h)
      for (int64_t key = s.keys; key < round_up(s.attended_keys, kernels_.token_step); ++key) {
        const TileAt at{s, sequence, h, 0, key / kTile};
        E* const tile = base + plan_.key_tile_by_head(at, dim);
        const bool given = bias && key == s.keys;
        for (int64_t d = 0; d < layout.rows(dim); ++d)
          tile[layout.at(d, key % kTile, dim, at.key_lanes())] = rounded<E>(
              given && d < dim ? bias.get<Acc<E>>(bias.at(h, d)) : Acc<E>(0));
      }
  };
  auto run = [=, this](int64_t sequence, int) {
    write(tiles.k, bias_k, kernels_.key_layout, plan_.heads.dim, sequence);
    write(tiles.v, bias_v, kernels_.value_layout, plan_.heads.value_dim, sequence);
  };
  phases.push_back({int64_t(plan_.sequences.size()), std::move(run),
                    plan_.begins([](const Sequence&) { return 1; })});
}

template <class E>
void Projection<E>::add_out(std::vector<Phase>& phases, std::vector<ProjectionSource<E>> sources,
                            Tokens tokens, const View& y, bool accumulate) const {
  const int64_t groups = sources[0].weights.groups(), features = sources[0].weights.m();
  phases.push_back(by_tile(tokens, groups,
                           [=, this, sources = std::move(sources)](const Part& part, Arena arena) {
                             out(part, sources, tokens, y, accumulate, arena);
                           }));
  if (tokens == Tokens::Queries || accumulate) return;
  auto clear = [=, this](int64_t sequence, int) { clear_hidden(y, sequence, features); };
  phases.push_back({int64_t(plan_.sequences.size()), std::move(clear),
                    plan_.begins([](const Sequence&) { return 1; })});
}

template <class E>
void Projection<E>::out(const Part& part, const std::vector<ProjectionSource<E>>& sources,
                        Tokens tokens, const View& y, bool accumulate, Arena arena) const {
  const PackedWeights<E>& weights = sources[0].weights;
  const Scratch scratch(arena, *this, weights.m());
  const TokenRows target = rows(y, tokens, part.at);
  void* to[kTile];
  target.tile(part.at.tile, plan_.sequence(part.at).tokens(tokens), to);
  // As many groups at once as there is room for their sums.
  const int64_t step = kernels_.sums_are_tiles ? part.end - part.begin : 1;
  for (int64_t g = part.begin; g < part.end; g += step) {
    const int64_t first = weights.first_row(g),
                  n = smaller(weights.first_row(g + step), weights.m()) - first;
    void* at[kTile];
    PrefetchList<kTile> list;  // where the rows go
    for (int64_t i = 0; i < kTile; ++i) {
      at[i] = to[i] ? static_cast<char*>(to[i]) + first * target.stride * target.item() : nullptr;
      if (to[i] && target.stride == 1) list.add(static_cast<char*>(at[i]), n * target.item());
    }
    combine({part.at, g, g + step}, sources, tokens, scratch.sums, list.get());
    kernels_.unpack_sums(target.target(at), scratch.sums, lanes(tokens, part.at), n, accumulate);
  }
}

// sums[rows of weights][lanes] = the sum of weights . tile over the sources, for some groups.
template <class E>
void Projection<E>::combine(const Part& part, const std::vector<ProjectionSource<E>>& sources,
                            Tokens tokens, Acc<E>* sums, Prefetch* last) const {
  using Depth = typename PackedWeights<E>::Depth;
  const TileLayout& layout = plan_.layout;
  const int64_t width = lanes(tokens, part.at);
  bool adds = false;
  for (const ProjectionSource<E>& source : sources) {
    const PackedWeights<E>& w = source.weights;
    const E* const tile = source.tiles + tile_begin(tokens, part.at, w.k());
    for_depth(w, kernels_.sums_are_tiles, [&](Depth depth) {
      const int64_t after = depth.first + depth.count;
      PrefetchList<1> list;  // the tile's next rows
      list.add(tile + layout.size(after, width),
               layout.size(smaller(w.k() - after, kDepth), width));
      Prefetch* const prefetch = after < w.k() ? list.get() : last;
      for (int64_t g = part.begin; g < part.end; ++g) {
        const int64_t row = w.first_row(g) - w.first_row(part.begin);
        TileGemm<E> product = w.product(g, depth, tile + layout.size(depth.first, width), width,
                                        sums + row * width, adds);
        product.prefetch = prefetch;
        kernels_.tile_gemm(product);
      }
    });
    adds = true;
  }
}

template <class E>
void Projection<E>::clear_hidden(const View& y, int64_t sequence, int64_t features) const {
  const Sequence& s = plan_.sequences[size_t(sequence)];
  TokenRows rows = token_rows(y, s, sequence, Tokens::Keys);
  rows.positions = nullptr;
  int64_t next = 0;  // of the keys that padding left
  for (int64_t j = 0; j < s.source_keys; ++j) {
    if (next < s.keys && s.position(next) == j) {
      ++next;
      continue;
    }
    clear_elements(rows.row(j), rows.stride, features, rows.type);
  }
}

// Backward

template <class E>
void Projection<E>::add_out_backward(std::vector<Phase>& phases, const PackedWeights<E>& weights,
                                     const View& d_y, const GradientTiles<E>& tiles) const {
  phases.push_back(by_tile(Tokens::Queries, plan_.heads.count,
                           [this, &weights, d_y, tiles](const Part& part, Arena arena) {
                             out_backward(part, weights, d_y, tiles, arena);
                           }));
}

template <class E>
void Projection<E>::out_backward(const Part& part, const PackedWeights<E>& weights, const View& d_y,
                                 const GradientTiles<E>& tiles, Arena arena) const {
  using Depth = typename PackedWeights<E>::Depth;
  const TileLayout& layout = plan_.layout;
  const int64_t features = d_y.size[d_y.rank - 1], width = lanes(Tokens::Queries, part.at);
  const int64_t dim = plan_.heads.value_dim, size = layout.size(dim, width);
  const auto offset = [&](int64_t head) { return plan_.query_tile(place(part.at, head), dim); };
  const Scratch scratch(arena, *this, features);
  E* const panel = scratch.tile;
  const TokenRows source = rows(d_y, Tokens::Queries, part.at);
  void* from[kTile];
  source.tile(part.at.tile, plan_.sequence(part.at).queries, from);
  kernels_.pack(panel, width, source.source(from), features, TileOf::Tokens);
  for_depth(weights, kernels_.sums_are_tiles, [&](Depth depth) {
    for (int64_t h = part.begin; h < part.end; ++h) {
      PrefetchList<2> list;  // where the next head goes, and what delta reads
      if (depth.first == 0 && h + 1 < part.end) list.add(tiles.d_out + offset(h + 1), size);
      if (depth.first + depth.count == weights.k()) list.add(tiles.forward.out + offset(h), size);
      TileGemm<E> g = weights.product(h, depth, panel + layout.size(depth.first, width), width,
                                      sums_of(scratch, tiles.d_out + offset(h)), false);
      g.prefetch = list.get();
      kernels_.tile_gemm(g);
      settle(g, tiles.d_out + offset(h), TileOf::Tokens);
    }
  });
  for (int64_t h = part.begin; h < part.end; ++h)
    kernels_.delta(tiles.delta + plan_.query_row(place(part.at, h)), tiles.d_out + offset(h),
                   tiles.forward.out + offset(h), dim, width);
}

template <class E>
void Projection<E>::add_extra_rows_backward(std::vector<Phase>& phases,
                                            const GradientTiles<E>& tiles, const View& d_bias_k,
                                            const View& d_bias_v) const {
  if (!d_bias_k && !d_bias_v) return;
  const auto add = [this](const E* base, const View& d_bias, int64_t dim, int64_t head) {
    for (int64_t d = 0; d_bias && d < dim; ++d) {
      Acc<E> sum = d_bias.get<Acc<E>>(d_bias.at(head, d));
      for (size_t b = 0; b < plan_.sequences.size(); ++b) {
        const Sequence& s = plan_.sequences[b];
        const TileAt at{s, int64_t(b), head, 0, s.keys / kTile};
        const E* const tile = base + plan_.key_tile(at, dim);
        sum += widen(tile[plan_.layout.at(d, s.keys % kTile, dim, at.key_lanes())]);
      }
      d_bias.set(d_bias.at(head, d), sum);
    }
  };
  auto run = [=, this](int64_t head, int) {
    add(tiles.d_k, d_bias_k, plan_.heads.dim, head);
    add(tiles.d_v, d_bias_v, plan_.heads.value_dim, head);
  };
  phases.push_back({plan_.heads.count, std::move(run)});
}

template class Projection<BFloat16>;
template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
