#include "row_projection.h"

namespace multihead {

template <class E>
struct RowProjection<E>::Scratch {
  int64_t features;
  E *tile, *rows;  // of tokens; of few tokens, in rows
  Acc<E>*sums, *scores, *angles;

  Scratch(Arena& arena, const RowProjection& p, int64_t features, int64_t group)
      : Scratch(
            arena, p, features,
            round_up(larger(p.kernels_.layout.rows(group), PackedWeights<E>::kFeatureGroup), kLane),
            p.rows_are_read()) {}
  Scratch(Arena& arena, const RowProjection& p, int64_t n, int64_t group, bool few)
      : features(n),
        tile(arena.take<E>(p.kernels_.layout.size(n, kTile))),
        rows(few ? arena.take<E>(kFewTokens * round_up(n, kLane)) : nullptr),
        sums(arena.take<Acc<E>>(group * kTile)),
        scores(few ? arena.take<Acc<E>>(kFewTokens * group) : nullptr),
        angles(arena.take<Acc<E>>(p.rotation_.scratch())) {}
};

template <class E>
size_t RowProjection<E>::scratch(int64_t features, int64_t group) const {
  Arena none;
  Scratch(none, *this, features, group);
  return none.used();
}

// Few tokens make one tile: then the work is shared by groups of weights.
template <class E>
void RowProjection<E>::add(std::vector<Phase>& phases, const View& x,
                           std::vector<RowTarget<E>> targets) const {
  int64_t groups = 0;
  for (const RowTarget<E>& target : targets) groups += target.weights->groups();
  const int64_t tiles = tiles_of(grid_.count());
  const int64_t wanted = divide_up(8 * memory_.workers(), larger(tiles, 1));
  const int64_t split = larger(1, smaller(wanted, groups));
  auto run = [=, this, targets = std::move(targets)](int64_t task, int worker) {
    const int64_t part = task % split;
    project({task / split, groups * part / split, groups * (part + 1) / split}, x, targets,
            memory_.of(worker));
  };
  phases.push_back({tiles * split, std::move(run)});
}

template <class E>
void RowProjection<E>::project(const Part& part, const View& x,
                               const std::vector<RowTarget<E>>& targets, Arena arena) const {
  int64_t group = 0;
  for (const RowTarget<E>& target : targets) group = larger(group, target.weights->rows(0));
  const Scratch scratch(arena, *this, x.size[2], group);
  const int64_t n = tokens_in(part.tile), lanes = round_up(n, kLane), first = part.tile * kTile;
  void* rows[kTile] = {};
  for (int64_t i = 0; i < n; ++i)
    rows[i] = x.address(x.at((first + i) / grid_.tokens, (first + i) % grid_.tokens));
  const SourceRows source{rows, x.stride[2], x.dtype};
  bool in_rows = scratch.rows;  // all weights are read so
  for (const RowTarget<E>& target : targets)
    in_rows = in_rows && target.weights->rows_in_place(0).found;
  if (!in_rows) kernels_.pack(scratch.tile, lanes, source, x.size[2], TileOf::Tokens);
  if (scratch.rows)
    kernels_.gather_rows(scratch.rows, round_up(x.size[2], kLane), source, x.size[2], n);
  typename Rotation<E>::Angles angles{};
  if (rotation_.on() && grid_.positions)
    angles = rotation_.gathered(
        n, lanes,
        [&](int64_t i) {
          const int64_t token = first + i;
          return grid_.positions[token / grid_.tokens] + token % grid_.tokens;
        },
        scratch.angles);
  int64_t before = 0;
  for (const RowTarget<E>& target : targets) {
    const PackedWeights<E>& w = *target.weights;
    const int64_t end = smaller(part.end - before, w.groups());
    for (int64_t g = larger(part.begin - before, 0); g < end; ++g) {
      multiply(w, g, n, scratch);
      if (target.turns && rotation_.on()) rotation_.turn(scratch.sums, lanes, angles, false);
      write(target, g, part.tile, scratch.sums);
    }
    before += w.groups();
  }
}

// sums[rows of the group][lanes]: the same bits either way.
template <class E>
void RowProjection<E>::multiply(const PackedWeights<E>& w, int64_t group, int64_t tokens,
                                const Scratch& scratch) const {
  using Depth = typename PackedWeights<E>::Depth;
  const int64_t lanes = round_up(tokens, kLane), n = w.rows(group);
  const auto lie = scratch.rows ? w.rows_in_place(group) : typename PackedWeights<E>::Rows{};
  if (!lie.found)
    return for_depth(w, kernels_.sums_are_tiles, [&](Depth depth) {
      const E* const tile = scratch.tile + kernels_.layout.size(depth.first, lanes);
      kernels_.tile_gemm(w.product(group, depth, tile, lanes, scratch.sums, false));
    });
  const int64_t pitch = round_up(n, kLane);
  kernels_.row_scores({.queries = tokens,
                       .keys = n,
                       .head_dim = scratch.features,
                       .q = scratch.rows,
                       .q_row = round_up(scratch.features, kLane),
                       .k = lie.rows,
                       .s = scratch.scores,
                       .s_row = pitch,
                       .bias = lie.bias});
  void* rows[kTile] = {};
  for (int64_t i = 0; i < tokens; ++i) rows[i] = scratch.scores + i * pitch;
  kernels_.pack_scores(scratch.sums, lanes, {rows, 1, kTypeOf<Acc<E>>}, n);
}

template <class E>
void RowProjection<E>::write(const RowTarget<E>& target, int64_t group, int64_t tile,
                             const Acc<E>* sums) const {
  const View& y = target.y;
  const int64_t n = tokens_in(tile);
  void* rows[kTile] = {};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t sequence = (tile * kTile + i) / grid_.tokens;
    const int64_t token = (tile * kTile + i) % grid_.tokens;
    rows[i] = y.address(y.at(sequence, group, (target.first ? target.first[sequence] : 0) + token));
  }
  kernels_.unpack_sums({rows, y.stride[3], y.dtype}, sums, round_up(n, kLane),
                       target.weights->rows(group), false);
}

template class RowProjection<BFloat16>;
template class RowProjection<float>;
template class RowProjection<double>;

}  // namespace multihead
