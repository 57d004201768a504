#include <algorithm>

#include "projection.h"
#include "wanted.h"

namespace multihead {

constexpr int64_t kFoldTokens = 4096;  // a sum over tokens is folded after this many
// A task's part of a gradient stays in L2, beside what it reads of the tokens at hand.
constexpr int64_t kRows = 1024, kColumns = 128;

// How a gradient of rows x columns is cut into tasks: no smaller than gives every worker one.
struct Cut {
  int64_t rows, columns;  // of a task
  int64_t across;         // tasks side by side
  int64_t tasks;

  Cut(int64_t all_rows, int64_t all_columns, int64_t workers) {
    int64_t down = divide_up(all_rows, kRows);
    across = divide_up(all_columns, kColumns);
    while (down * across < workers && across < divide_up(all_columns, kTile)) ++across;
    while (down * across < workers && down < divide_up(all_rows, kTile)) ++down;
    rows = round_up(divide_up(all_rows, down), kLane);  // as even as may be
    columns = round_up(divide_up(all_columns, across), kTile);
    across = divide_up(all_columns, columns);
    tasks = divide_up(all_rows, rows) * across;
  }
};

// Memory of a task: sums so far, those since the last fold, and the tokens at hand. Columns go
// by 64: [column / 64][row][64].
template <class T>
struct GradientScratch {
  T *total, *part, *panels;
  T *row_total, *row_part, *column_total, *column_part;

  GradientScratch(Arena& arena, const Cut& cut)
      : total(arena.take<T>(cut.rows * cut.columns)),
        part(arena.take<T>(cut.rows * cut.columns)),
        panels(arena.take<T>(kTile * cut.columns)),
        row_total(arena.take<T>(cut.rows * kLane)),
        row_part(arena.take<T>(cut.rows * kLane)),
        column_total(arena.take<T>(cut.columns)),
        column_part(arena.take<T>(cut.columns)) {}
};

template <class T>
void Projection<T>::add_weight_gradient(std::vector<Phase>& phases, const T* tiles_in,
                                        Tokens tokens, int64_t head_dim, const Rows<const T>& x,
                                        const View& d_weight, const View& d_bias, bool by_column) {
  if (!d_weight && !d_bias) return;
  const int64_t rows = plan_.heads * head_dim;
  const int64_t columns = d_weight ? d_weight.size[2] : by_column ? d_bias.size[0] : 0;
  const Cut cut(rows, larger(columns, 1), workers_);
  Arena count;
  GradientScratch<T>(count, cut);
  memory_.need(count.used());
  auto run = [=, this](int64_t task, int worker) {
    const int64_t row = task / cut.across * cut.rows, column = task % cut.across * cut.columns;
    weight_gradient({row, smaller(rows - row, cut.rows)},
                    {column, smaller(columns - column, cut.columns)}, cut, tiles_in, tokens,
                    head_dim, x, d_weight, d_bias, by_column, memory_.of(worker));
  };
  phases.push_back({cut.tasks, std::move(run)});
}

template <class T>
void Projection<T>::weight_gradient(Span row, Span column, const Cut& cut, const T* tiles_in,
                                    Tokens tokens, int64_t head_dim, const Rows<const T>& x,
                                    const View& d_weight, const View& d_bias, bool by_column,
                                    Arena arena) const {
  const int64_t all_rows = plan_.heads * head_dim;
  const bool row_sums = d_bias && !by_column && column.first == 0;
  const bool column_sums = d_bias && by_column && row.first == 0;
  const bool reads_x = (d_weight || column_sums) && column.count > 0;
  const int64_t count = row.count, floats = count * round_up(column.count, kTile);
  const GradientScratch<T> at(arena, cut);
  std::fill(at.total, at.total + floats, T(0));
  std::fill(at.row_total, at.row_total + count * kLane, T(0));
  std::fill(at.column_total, at.column_total + column.count, T(0));
  // Columns of one panel, and the lanes that they fill.
  const auto in_panel = [&](int64_t c) { return smaller(column.count - c, kTile); };

  const std::vector<TileRef>& list = tiles(tokens);
  const auto tile_of = [&](size_t i) {
    return tiles_in + first_lane(tokens, list[i]) * all_rows + row.first * lanes(tokens, list[i]);
  };
  int64_t folded = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t width = lanes(tokens, list[i]);
    const T* from[kTile];
    const int64_t n = rows(tokens, x, list[i], from);
    const bool fresh = folded == 0;
    if (fresh) {
      std::fill(at.row_part, at.row_part + count * kLane, T(0));
      std::fill(at.column_part, at.column_part + column.count, T(0));
    }
    Wanted<kTile + 1> wanted;
    if (i + 1 < list.size() && d_weight) {
      const T* next[kTile];
      const int64_t m = rows(tokens, x, list[i + 1], next);
      wanted.add(tile_of(i + 1), count * lanes(tokens, list[i + 1]));
      for (int64_t r = 0; r < m && x.stride == 1; ++r)
        wanted.add(next[r] + column.first, column.count);
    }
    Ahead* const ahead = wanted.ahead();
    for (int64_t c = 0; c < column.count && reads_x; c += kTile) {
      const T* columns_of[kTile];
      for (int64_t r = 0; r < n; ++r) columns_of[r] = from[r] + (column.first + c) * x.stride;
      T* panel = at.panels + c * kTile;
      const int64_t used = in_panel(c), pitch = round_up(used, kLane);
      kernels_.gather(panel, pitch, columns_of, x.stride, used, n);
      if (column_sums) kernels_.column_sums(at.column_part + c, panel, pitch, n, used);
      if (!d_weight) continue;
      Gemm<T> g{count, pitch, n, tile_of(i), width, 1, panel, pitch, at.part + c * count, pitch};
      g.init = fresh ? Init::Zero : Init::Load;
      g.ahead = ahead;
      kernels_.gemm(g);
    }
    if (row_sums) kernels_.row_sums(at.row_part, tile_of(i), width, count, n);
    folded += n;
    if (folded >= kFoldTokens || i + 1 == list.size()) {
      if (d_weight) kernels_.add_scaled(at.total, at.part, floats, T(1));
      if (row_sums) kernels_.add_scaled(at.row_total, at.row_part, count * kLane, T(1));
      if (column_sums) kernels_.add_scaled(at.column_total, at.column_part, column.count, T(1));
      folded = 0;
    }
  }

  for (int64_t r = 0; r < count; ++r) {
    const int64_t head = (row.first + r) / head_dim, d = (row.first + r) % head_dim;
    for (int64_t c = 0; c < column.count && d_weight; c += kTile) {
      const int64_t used = in_panel(c), pitch = round_up(used, kLane);
      const T* sums = at.total + c * count + r * pitch;
      T* to = d_weight.as<T>() + head * d_weight.stride[0] + d * d_weight.stride[1] +
              (column.first + c) * d_weight.stride[2];
      if (d_weight.stride[2] == 1) {
        kernels_.add_scaled(to, sums, used, T(1));
      } else {
        for (int64_t e = 0; e < used; ++e) to[e * d_weight.stride[2]] += sums[e];
      }
    }
    if (row_sums) {
      T sum = 0;
      for (int64_t i = 0; i < kLane; ++i) sum += at.row_total[r * kLane + i];
      d_bias.as<T>()[head * d_bias.stride[0] + d * d_bias.stride[1]] += sum;
    }
  }
  if (column_sums)
    for (int64_t c = 0; c < column.count; ++c)
      d_bias.as<T>()[(column.first + c) * d_bias.stride[0]] += at.column_total[c];
}

template <class T>
void Projection<T>::add_bias_row_gradient(std::vector<Phase>& phases, const T* d_k, const T* d_v,
                                          const View& d_bias_k, const View& d_bias_v) {
  const auto add = [this](const T* tiles_in, const View& d_bias, int64_t dim, int64_t head) {
    if (!d_bias) return;
    for (const Sequence& s : plan_.sequences) {
      const int64_t tile = s.keys / kTile, width = tile_lanes(plan_.rows(s), tile);
      const T* at = tiles_in + (s.key_lane + tile * kTile) * plan_.heads * dim +
                    head * dim * width + s.keys % kTile;
      T* to = d_bias.as<T>() + head * d_bias.stride[0];
      for (int64_t d = 0; d < dim; ++d) to[d * d_bias.stride[1]] += at[d * width];
    }
  };
  if (!d_bias_k && !d_bias_v) return;
  auto run = [=, this](int64_t head, int) {
    add(d_k, d_bias_k, plan_.head_dim, head);
    add(d_v, d_bias_v, plan_.value_dim, head);
  };
  phases.push_back({plan_.heads, std::move(run)});
}

template class Projection<float>;
template class Projection<double>;

}  // namespace multihead
