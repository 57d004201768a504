#include "projection.h"

#include "interruption.h"

#include <algorithm>

namespace multihead {

// Tiles of so many features, and sums that are no tile: of a head, or of a group of features.
template <class E>
struct Projection<E>::Scratch {
  int64_t size;  // of a tile
  E* tiles;
  Acc<E>*sums, *angles;  // of a tile's positions

  Scratch(Arena& arena, const Projection& p, int64_t features)
      : size(p.plan_.layout.size(features, kTile)),
        tiles(arena.take<E>(size_product(size, p.kernels_.token_tiles))),
        sums(p.kernels_.sums_are_tiles ? as_sums<E>(tiles)
                                       : arena.take<Acc<E>>(kTile * p.rows_of_sums())),
        angles(arena.take<Acc<E>>(p.rotation_.scratch())) {}

  E* tile(int64_t i) const { return tiles + i * size; }
};

template <class E>
int64_t Projection<E>::rows_of_sums() const {
  return larger(PackedWeights<E>::kFeatureGroup,
                plan_.layout.rows(larger(plan_.heads.dim, plan_.heads.value_dim)));
}

template <class E>
size_t Projection<E>::scratch(int64_t features) const {
  Arena none;
  Scratch(none, *this, features);
  return none.used();
}

// As many as a set wants, while there are enough for all workers.
template <class E>
int64_t Projection<E>::tiles_at_once(Tokens tokens) const {
  const int64_t each = int64_t(plan_.tiles(tokens).size()) / (4 * memory_.workers());
  return larger(1, smaller(each, kernels_.token_tiles));
}

// A phase with tasks for some tiles of a sequence each: the work on them is cut so that all workers
// have some.
template <class E>
template <class F>
Phase Projection<E>::by_tile(Tokens tokens, int64_t units, F run) const {
  const std::vector<TileRef>& tiles = plan_.tiles(tokens);
  const int64_t most = tiles_at_once(tokens);
  std::vector<std::pair<int64_t, int64_t>> some;  // where they begin, and how many
  std::vector<int64_t> begin{0};
  for (int64_t i = 0, end = 0; const Sequence& s : plan_.sequences) {
    for (end += tiles_of(s.tokens(tokens)); i < end; i = some.back().first + some.back().second)
      some.push_back({i, smaller(end - i, most)});
    begin.push_back(int64_t(some.size()));
  }
  const int64_t n = int64_t(some.size());
  const int64_t wanted = divide_up(6 * memory_.workers(), larger(n, 1));
  const int64_t split = wanted < 1 ? 1 : smaller(wanted, units);
  for (int64_t& first : begin) first *= split;
  auto task_of = [this, &tiles, some = std::move(some), units, split, run = std::move(run)](
                     int64_t task, int worker) {
    const int64_t part = task % split;
    const auto [first, count] = some[size_t(task / split)];
    run(Part{tiles.data() + first, count, units * part / split, units * (part + 1) / split},
        memory_.of(worker));
  };
  return {n * split, std::move(task_of), std::move(begin)};
}

// The rows of some tokens as a tile.
template <class E>
void Projection<E>::pack(const View& x, Tokens tokens, TileRef at, E* tile) const {
  const TokenRows source = rows(x, tokens, at);
  void* from[kTile];
  source.tile(at.tile, plan_.sequence(at).tokens(tokens), from);
  kernels_.pack(tile, lanes(tokens, at), source.source(from), x.size[x.rank - 1], TileOf::Tokens);
}

// Forward

template <class E>
void Projection<E>::add_in(std::vector<Phase>& phases, const View& x, Tokens tokens,
                           std::vector<ProjectionTarget<E>> targets) const {
  int64_t units = 0;  // heads for each tile
  for (const ProjectionTarget<E>& target : targets) units += target.weights.groups();
  phases.push_back(by_tile(tokens, units,
                           [=, this, targets = std::move(targets)](const Part& part, Arena arena) {
                             in(part, x, tokens, targets, arena);
                           }));
}

template <class E>
void Projection<E>::in(const Part& part, const View& x, Tokens tokens,
                       const std::vector<ProjectionTarget<E>>& targets, Arena arena) const {
  const Scratch scratch(arena, *this, x.size[x.rank - 1]);
  for (int64_t i = 0; i < part.count; ++i) pack(x, tokens, part.tiles[i], scratch.tile(i));
  // One set of weights at a time: what a pass over a block of k adds to must stay in L2.
  int64_t before = 0;  // heads
  for (const ProjectionTarget<E>& target : targets) {
    const int64_t heads = target.weights.groups();
    const int64_t begin = larger(part.begin - before, 0), end = smaller(part.end - before, heads);
    if (begin < end) into_heads({part.tiles, part.count, begin, end}, tokens, target, scratch);
    before += heads;
  }
}

template <class E>
void Projection<E>::into_heads(const Part& part, Tokens tokens, const ProjectionTarget<E>& target,
                               const Scratch& scratch) const {
  using Depth = typename PackedWeights<E>::Depth;
  const TileLayout& layout = plan_.layout;
  const PackedWeights<E>& weights = target.weights;
  const bool queries = target.what == TileOf::Tokens;
  const bool turns = rotation_.on() && target.what != TileOf::Values;
  const int64_t step = queries ? 1 : plan_.heads.group();
  const auto tile_of = [&](TileRef tile, int64_t head) {
    const TileAt at = place(tile, head * step);
    const int64_t dim = weights.rows(head);
    return target.tiles + (queries ? plan_.query_tile(at, dim) : plan_.key_tile_by_head(at, dim));
  };
  for_depth(weights, kernels_.sums_are_tiles, [&](Depth depth) {
    const bool last = depth.first + depth.count >= weights.k();
    for (int64_t h = part.begin; h < part.end && !ending(); ++h)
      for (int64_t i = 0; i < part.count; ++i) {
        const TileRef at = part.tiles[i];
        const int64_t width = lanes(tokens, at);
        PrefetchList list;  // where the next head goes
        if (depth.first == 0 && h + 1 < part.end)
          list.add(tile_of(at, h + 1), layout.size(weights.rows(h + 1), width));
        E* const to = tile_of(at, h);
        TileGemm<E> g = weights.product(h, depth, scratch.tile(i) + layout.size(depth.first, width),
                                        width, sums_of(scratch, to), false);
        g.prefetch = list.get();
        kernels_.tile_gemm(g);
        if (turns && last) {
          const Tokens of = queries ? Tokens::Queries : Tokens::Keys;
          rotation_.turn(g.c, width, rotation_.angles(place(at, 0), of, scratch.angles), false);
        }
        settle(g, to, target.what);
      }
  });
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
    for (int64_t h = 0; h < plan_.heads.key_count; ++h)
      for (int64_t key = s.keys; key < round_up(s.attended_keys, kernels_.token_step); ++key) {
        const TileAt at{s, sequence, h * plan_.heads.group(), 0, key / kTile};
        E* const tile = base + plan_.key_tile_by_head(at, dim);
        const bool given = bias && key == s.keys;
        for (int64_t d = 0; d < layout.rows(dim); ++d)
          tile[layout.at(d, key % kTile, dim, at.key_lanes())] =
              rounded<E>(given && d < dim ? bias.get<Acc<E>>(bias.at(h, d)) : Acc<E>(0));
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
  // As many groups at once as there is room for their sums.
  const int64_t step = kernels_.sums_are_tiles ? part.end - part.begin : 1;
  for (int64_t g = part.begin; g < part.end; g += step) {
    const int64_t first = weights.first_row(g),
                  n = smaller(weights.first_row(g + step), weights.m()) - first;
    for (int64_t i = 0; i < part.count; ++i) {
      const TileRef at = part.tiles[i];
      const TokenRows target = rows(y, tokens, at);
      void* to[kTile];
      target.tile(at.tile, plan_.sequence(at).tokens(tokens), to);
      PrefetchList list;  // where the rows go
      for (void*& row : to) {
        if (!row) continue;
        row = static_cast<char*>(row) + first * target.stride * target.item();
        if (target.stride == 1) list.add(static_cast<char*>(row), n * target.item());
      }
      combine({&at, 1, g, g + step}, sources, tokens, scratch.sums, list.get());
      kernels_.unpack_sums(target.target(to), scratch.sums, lanes(tokens, at), n, accumulate);
    }
  }
}

// sums[rows of weights][lanes] = the sum of weights . tile over the sources, for one tile and some
// groups.
template <class E>
void Projection<E>::combine(const Part& part, const std::vector<ProjectionSource<E>>& sources,
                            Tokens tokens, Acc<E>* sums, Prefetch* last) const {
  using Depth = typename PackedWeights<E>::Depth;
  const TileLayout& layout = plan_.layout;
  const TileRef at = part.tiles[0];
  const int64_t width = lanes(tokens, at);
  bool adds = false;
  for (const ProjectionSource<E>& source : sources) {
    const PackedWeights<E>& w = source.weights;
    const E* const tile = source.tiles + tile_begin(tokens, at, w.k());
    for_depth(w, kernels_.sums_are_tiles, [&](Depth depth) {
      const int64_t after = depth.first + depth.count;
      PrefetchList list;  // the tile's next rows
      list.add(tile + layout.size(after, width),
               layout.size(smaller(w.k() - after, kDepth), width));
      Prefetch* const prefetch = after < w.k() ? list.get() : last;
      for (int64_t g = part.begin; g < part.end && !ending(); ++g) {
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
  const int64_t dim = plan_.heads.value_dim;
  const Scratch scratch(arena, *this, d_y.size[d_y.rank - 1]);
  const auto offset = [&](TileRef at, int64_t head) {
    return plan_.query_tile(place(at, head), dim);
  };
  for (int64_t i = 0; i < part.count; ++i)
    pack(d_y, Tokens::Queries, part.tiles[i], scratch.tile(i));
  for_depth(weights, kernels_.sums_are_tiles, [&](Depth depth) {
    for (int64_t h = part.begin; h < part.end && !ending(); ++h)
      for (int64_t i = 0; i < part.count; ++i) {
        const TileRef at = part.tiles[i];
        const int64_t width = lanes(Tokens::Queries, at), size = layout.size(dim, width);
        PrefetchList list;  // where the next head goes, and what delta reads
        if (depth.first == 0 && h + 1 < part.end) list.add(tiles.d_out + offset(at, h + 1), size);
        if (depth.first + depth.count == weights.k())
          list.add(tiles.forward.out + offset(at, h), size);
        E* const to = tiles.d_out + offset(at, h);
        TileGemm<E> g = weights.product(h, depth, scratch.tile(i) + layout.size(depth.first, width),
                                        width, sums_of(scratch, to), false);
        g.prefetch = list.get();
        kernels_.tile_gemm(g);
        settle(g, to, TileOf::Tokens);
      }
  });
  for (int64_t i = 0; i < part.count; ++i)
    for (int64_t h = part.begin; h < part.end; ++h) {
      const TileRef at = part.tiles[i];
      kernels_.delta(tiles.delta + plan_.query_row(place(at, h)), tiles.d_out + offset(at, h),
                     tiles.forward.out + offset(at, h), dim, lanes(Tokens::Queries, at));
    }
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
        const TileAt at{s, int64_t(b), head * plan_.heads.group(), 0, s.keys / kTile};
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
  phases.push_back({plan_.heads.key_count, std::move(run)});
}

template class Projection<BFloat16>;
template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
