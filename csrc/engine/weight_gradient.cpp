// Gradients of weights: sums over all tokens, cut into tasks by rows and columns.
#include <algorithm>

#include "interruption.h"
#include "projection.h"

namespace multihead {

constexpr int64_t kReduceTokens = 1024;  // a sum over tokens goes to the total after this many
// A task's part of a gradient stays in L2, beside what it reads of the tokens at hand.
constexpr int64_t kRows = 1024, kColumns = 128;

template <class E>
struct Projection<E>::TileRange {
  int64_t row, rows, column, columns;

  // Columns go in panels of 64, the last of which may be narrower.
  int64_t in_panel(int64_t c) const { return smaller(columns - c, kTile); }
  int64_t pitch(int64_t c) const { return round_up(in_panel(c), kLane); }
  int64_t elements() const { return rows * round_up(columns, kTile); }
};

// How a gradient of rows x columns is cut into tasks: no smaller than gives every worker one.
// Rows are those of a tile: where its groups are filled up, there are more than the weights have.
template <class E>
struct Projection<E>::Cut {
  int64_t all_rows, all_columns;
  int64_t rows, columns;  // of a task
  int64_t across;         // tasks side by side
  int64_t tasks;

  Cut(const WeightGradient<E>& g, const Plan& plan, int64_t workers)
      : all_rows(g.heads(plan) * plan.layout.rows(g.head_dim)),
        all_columns(g.d_weight         ? g.d_weight.size[2]
                    : g.bias_by_column ? g.d_bias.size[0]
                                       : 0) {
    const int64_t some_columns = larger(all_columns, 1);
    int64_t down = divide_up(all_rows, kRows);
    across = divide_up(some_columns, kColumns);
    while (down * across < workers && across < divide_up(some_columns, kTile)) ++across;
    while (down * across < workers && down < divide_up(all_rows, kTile)) ++down;
    rows = round_up(divide_up(all_rows, down), kLane);  // as even as may be
    columns = round_up(divide_up(some_columns, across), kTile);
    across = divide_up(some_columns, columns);
    tasks = divide_up(all_rows, rows) * across;
  }

  TileRange range(int64_t task) const {
    const int64_t row = task / across * rows, column = task % across * columns;
    return {row, smaller(all_rows - row, rows), column, smaller(all_columns - column, columns)};
  }
};

// Sums so far, those since the last reduction, and the tokens at hand: some features of theirs, and
// columns by 64: [column / 64][token][64] and [column / 64][row][64].
template <class E>
struct Projection<E>::SumScratch {
  Acc<E>*total, *part;
  E *features, *panels;
  Acc<E>*row_total, *row_part, *column_total, *column_part;

  SumScratch(Arena& arena, const Cut& cut, int64_t tokens)
      : total(arena.take<Acc<E>>(cut.rows * cut.columns)),
        part(arena.take<Acc<E>>(cut.rows * cut.columns)),
        features(kRounds<E> ? arena.take<E>(cut.rows * tokens) : nullptr),
        panels(arena.take<E>(tokens * cut.columns)),
        row_total(arena.take<Acc<E>>(cut.rows * kLane)),
        row_part(arena.take<Acc<E>>(cut.rows * kLane)),
        column_total(arena.take<Acc<E>>(cut.columns)),
        column_part(arena.take<Acc<E>>(cut.columns)) {}
};

template <class E>
int64_t Projection<E>::tokens_at_once() const {
  return kernels_.token_tiles * kTile;
}

template <class E>
size_t Projection<E>::scratch(const WeightGradient<E>& g) const {
  if (!g.d_weight && !g.d_bias) return 0;
  return bytes_of<SumScratch>(Cut(g, plan_, memory_.workers()), tokens_at_once());
}

template <class E>
void Projection<E>::add_weight_gradient(std::vector<Phase>& phases,
                                        const WeightGradient<E>& gradient) const {
  if (!gradient.d_weight && !gradient.d_bias) return;
  const Cut cut(gradient, plan_, memory_.workers());
  auto run = [this, cut, gradient](int64_t task, int worker) {
    Arena arena = memory_.of(worker);
    weight_gradient(cut.range(task), gradient, SumScratch(arena, cut, tokens_at_once()));
  };
  phases.push_back({cut.tasks, std::move(run)});
}

// Which sums of the bias a task makes besides its part of the weights.
template <class E>
static bool sums_rows(const WeightGradient<E>& g, int64_t first_column) {
  return g.d_bias && !g.bias_by_column && first_column == 0;
}
template <class E>
static bool sums_columns(const WeightGradient<E>& g, int64_t first_row) {
  return g.d_bias && g.bias_by_column && first_row == 0;
}

template <class E>
void Projection<E>::weight_gradient(const TileRange& range, const WeightGradient<E>& g,
                                    const SumScratch& at) const {
  const bool row_sums = sums_rows(g, range.column), column_sums = sums_columns(g, range.row);
  const int64_t lanes_of_rows = range.rows * kLane;
  std::fill(at.total, at.total + range.elements(), Acc<E>(0));
  std::fill(at.row_total, at.row_total + lanes_of_rows, Acc<E>(0));
  std::fill(at.column_total, at.column_total + range.columns, Acc<E>(0));
  const std::vector<TileRef>& tiles = plan_.tiles(g.tokens);
  int64_t since = 0;  // tokens since the last reduction
  for (size_t i = 0; i < tiles.size() && !ending();) {
    if (since == 0) {
      std::fill(at.row_part, at.row_part + lanes_of_rows, Acc<E>(0));
      std::fill(at.column_part, at.column_part + range.columns, Acc<E>(0));
    }
    const SomeTiles some{&tiles, i, std::min(i + size_t(kernels_.token_tiles), tiles.size())};
    sum_tokens(some, since > 0, range, g, at);
    for (; i < some.end; ++i)
      since += tile_tokens(plan_.sequence(tiles[i]).tokens(g.tokens), tiles[i].tile);
    if (since < kReduceTokens && i < tiles.size()) continue;
    if (g.d_weight) kernels_.add_scaled(at.total, at.part, range.elements(), Acc<E>(1));
    if (row_sums) kernels_.add_scaled(at.row_total, at.row_part, lanes_of_rows, Acc<E>(1));
    if (column_sums) kernels_.add_scaled(at.column_total, at.column_part, range.columns, Acc<E>(1));
    since = 0;
  }
  add_sums(range, g, at);
}

template <class E>
void Projection<E>::sum_tokens(const SomeTiles& some, bool adds, const TileRange& range,
                               const WeightGradient<E>& g, const SumScratch& at) const {
  const std::vector<TileRef>& tiles = *some.tiles;
  const int64_t all_rows = g.heads(plan_) * plan_.layout.rows(g.head_dim);
  const int64_t stride = g.x.stride[g.x.rank - 1], item = item_bytes(g.x.dtype);
  const auto tile_at = [&](TileRef ref) {
    return g.tiles + tile_begin(g.tokens, ref, all_rows) + range.row * lanes(g.tokens, ref);
  };
  const auto tokens_of = [&](TileRef ref) {
    return tile_tokens(plan_.sequence(ref).tokens(g.tokens), ref.tile);
  };
  const auto rows_at = [&](TileRef ref, void** to) {
    return rows(g.x, g.tokens, ref).tile(ref.tile, plan_.sequence(ref).tokens(g.tokens), to);
  };
  const auto column_of = [&](void* row, int64_t column) {
    return static_cast<char*>(row) + column * stride * item;
  };
  PrefetchList list;
  if (some.end < tiles.size() && g.d_weight) {
    void* next[kTile];
    const int64_t m = rows_at(tiles[some.end], next);
    list.add(tile_at(tiles[some.end]),
             plan_.layout.size(range.rows, lanes(g.tokens, tiles[some.end])));
    for (int64_t r = 0; r < m && stride == 1; ++r)
      list.add(column_of(next[r], range.column), range.columns * item);
  }
  Prefetch* const prefetch = list.get();
  const bool row_sums = sums_rows(g, range.column), column_sums = sums_columns(g, range.row);
  int64_t tokens = 0, pitch = tokens_at_once();
  const E* features = nullptr;
  for (size_t i = some.begin; i < some.end && (g.d_weight || row_sums); ++i) {
    const int64_t n = tokens_of(tiles[i]);
    const E* const here = kernels_.feature_rows(at.features + tokens, pitch, tile_at(tiles[i]),
                                                lanes(g.tokens, tiles[i]), range.rows, n);
    if (row_sums) kernels_.row_sums(at.row_part, here, pitch, range.rows, n);
    if (i == some.begin) features = here;
    tokens += round_up(n, kernels_.token_step);
  }
  for (int64_t c = 0; c < range.columns && (g.d_weight || column_sums); c += kTile) {
    E* const panel = at.panels + c * tokens_at_once();
    const int64_t used = range.in_panel(c), columns = range.pitch(c);
    int64_t before = 0;
    for (size_t i = some.begin; i < some.end; ++i) {
      void* from[kTile];
      const int64_t n = rows_at(tiles[i], from);
      for (int64_t r = 0; r < n; ++r) from[r] = column_of(from[r], range.column + c);
      E* const to = panel + before * columns;
      kernels_.gather_tokens(to, columns, {from, stride, g.x.dtype}, used, n);
      if (column_sums) kernels_.column_sums(at.column_part + c, to, columns, n, used);
      before += round_up(n, kernels_.token_step);
    }
    if (!g.d_weight) continue;
    kernels_.token_gemm({.m = range.rows,
                         .tokens = tokens,
                         .columns = columns,
                         .a = features,
                         .a_row = pitch,
                         .b = panel,
                         .c = at.part + c * range.rows,
                         .adds = adds,
                         .prefetch = prefetch});
  }
}

template <class A>
static void add(const View& to, int64_t at, A sum) {
  to.set(at, to.get<A>(at) + sum);
}

template <class E>
void Projection<E>::add_sums(const TileRange& range, const WeightGradient<E>& g,
                             const SumScratch& at) const {
  const bool row_sums = sums_rows(g, range.column), column_sums = sums_columns(g, range.row);
  const View &d_weight = g.d_weight, &d_bias = g.d_bias;
  const int64_t padded = plan_.layout.rows(g.head_dim);
  for (int64_t r = 0; r < range.rows; ++r) {
    const int64_t head = (range.row + r) / padded, d = (range.row + r) % padded;
    if (d >= g.head_dim) continue;
    for (int64_t c = 0; c < range.columns && d_weight; c += kTile) {
      const Acc<E>* sums = at.total + c * range.rows + r * range.pitch(c);
      void* const to = d_weight.address(d_weight.at(head, d, range.column + c));
      kernels_.add_to_row({&to, d_weight.stride[2], d_weight.dtype}, sums, range.in_panel(c));
    }
    if (row_sums) {
      Acc<E> sum = 0;
      for (int64_t i = 0; i < kLane; ++i) sum += at.row_total[r * kLane + i];
      add(d_bias, d_bias.at(head, d), sum);
    }
  }
  if (column_sums)
    for (int64_t c = 0; c < range.columns; ++c)
      add(d_bias, d_bias.at(range.column + c), at.column_total[c]);
}

template class Projection<BFloat16>;
template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
