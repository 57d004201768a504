#include <algorithm>

#include "projection.h"

namespace multihead {

constexpr int64_t kFoldTokens = 1024;  // a sum over tokens is folded after this many
constexpr int64_t kStrip = 128;        // rows between which the next panel is asked for
constexpr int64_t kMostRows = 1024;    // of a weight gradient in one task: what L2 holds

template <class T>
void Projection<T>::add_weight_gradient(std::vector<Phase>& phases, const T* tiles_in,
                                        Tokens tokens, int64_t head_dim, const Rows<const T>& x,
                                        const View& d_weight, const View& d_bias, bool by_column) {
  if (!d_weight && !d_bias) return;
  const View& d = d_weight ? d_weight : d_bias;
  const int64_t rows = plan_.heads * head_dim;
  const int64_t columns = by_column && !d_weight ? d.size[0] : d_weight ? d.size[2] : 1;
  const int64_t column_tiles = divide_up(columns, kTile);
  // As few blocks of rows as give all workers something to do: each gathers x anew.
  const int64_t wanted = larger(divide_up(rows, kMostRows), divide_up(2 * workers_, column_tiles));
  const int64_t block = round_up(divide_up(rows, smaller(wanted, divide_up(rows, kTile))), kLane);
  const int64_t blocks = divide_up(rows, block);
  Arena count;
  count.take<T>(2 * block * kTile + kTile * kTile + 2 * block * kLane + 2 * kTile);
  memory_.need(count.used());
  auto run = [=, this](int64_t task, int worker) {
    const int64_t row = task / column_tiles * block, column = task % column_tiles * kTile;
    weight_gradient(row, smaller(rows - row, block), column, tiles_in, tokens, head_dim, x,
                    d_weight, d_bias, by_column, memory_.of(worker));
  };
  phases.push_back({blocks * column_tiles, std::move(run)});
}

// Asks for columns of some rows ahead of their use: they lie far apart.
template <class T>
static void fetch(const T* const* rows, int64_t begin, int64_t end, int64_t column,
                  int64_t columns) {
  for (int64_t r = begin; r < end; ++r)
    for (int64_t c = 0; c < columns && rows[r]; c += int64_t(kAlign / sizeof(T)))
      __builtin_prefetch(rows[r] + column + c, 0, 2);
}

template <class T>
void Projection<T>::weight_gradient(int64_t row, int64_t count, int64_t column, const T* tiles_in,
                                    Tokens tokens, int64_t head_dim, const Rows<const T>& x,
                                    const View& d_weight, const View& d_bias, bool by_column,
                                    Arena scratch) const {
  const int64_t all_rows = plan_.heads * head_dim;
  const bool row_sums = d_bias && !by_column && column == 0;
  const bool column_sums = d_bias && by_column && row == 0;
  const int64_t columns = d_weight    ? smaller(d_weight.size[2] - column, kTile)
                          : by_column ? smaller(d_bias.size[0] - column, kTile)
                                      : 0;
  const int64_t pitch = round_up(columns, kLane), floats = count * pitch;
  T* total = scratch.take<T>(count * kTile);
  T* part = scratch.take<T>(count * kTile);
  T* panel = scratch.take<T>(kTile * kTile);
  T* row_total = scratch.take<T>(count * kLane);
  T* row_part = scratch.take<T>(count * kLane);
  T* column_total = scratch.take<T>(kTile);
  T* column_part = scratch.take<T>(kTile);
  std::fill(total, total + floats, T(0));
  std::fill(row_total, row_total + count * kLane, T(0));
  std::fill(column_total, column_total + kTile, T(0));

  const std::vector<TileRef>& list = tiles(tokens);
  int64_t folded = 0;
  bool fresh = true;
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t width = lanes(tokens, list[i]);
    const T* tile = tiles_in + first_lane(tokens, list[i]) * all_rows + row * width;
    const T* from[kTile];
    const int64_t n = rows(tokens, x, list[i], from);
    if (fresh) {
      std::fill(row_part, row_part + count * kLane, T(0));
      std::fill(column_part, column_part + kTile, T(0));
    }
    if (columns > 0 && (d_weight || column_sums)) {
      for (int64_t r = 0; r < n; ++r) from[r] += column * x.stride;
      kernels_.gather(panel, pitch, from, x.stride, columns, n);
    }
    const T* next[kTile] = {};
    if (i + 1 < list.size()) rows(tokens, x, list[i + 1], next);
    for (int64_t r = 0; r < count && d_weight; r += kStrip) {
      const int64_t m = smaller(count - r, kStrip);
      if (x.stride == 1) fetch(next, r * kTile / count, (r + m) * kTile / count, column, columns);
      kernels_.gemm({m, pitch, n, tile + r * width, width, 1, panel, pitch, part + r * pitch, pitch,
                     fresh ? Init::Zero : Init::Load});
    }
    if (row_sums) kernels_.row_sums(row_part, tile, width, count, n);
    if (column_sums) kernels_.column_sums(column_part, panel, pitch, n, columns);
    fresh = false;
    folded += n;
    if (folded >= kFoldTokens || i + 1 == list.size()) {
      if (d_weight) kernels_.add_scaled(total, part, floats, T(1));
      if (row_sums) kernels_.add_scaled(row_total, row_part, count * kLane, T(1));
      if (column_sums) kernels_.add_scaled(column_total, column_part, kTile, T(1));
      folded = 0;
      fresh = true;
    }
  }

  for (int64_t r = 0; r < count; ++r) {
    const int64_t head = (row + r) / head_dim, d = (row + r) % head_dim;
    if (d_weight) {
      T* to = d_weight.as<T>() + head * d_weight.stride[0] + d * d_weight.stride[1] +
              column * d_weight.stride[2];
      if (d_weight.stride[2] == 1) {
        kernels_.add_scaled(to, total + r * pitch, columns, T(1));
      } else {
        for (int64_t c = 0; c < columns; ++c) to[c * d_weight.stride[2]] += total[r * pitch + c];
      }
    }
    if (row_sums) {
      T sum = 0;
      for (int64_t i = 0; i < kLane; ++i) sum += row_total[r * kLane + i];
      d_bias.as<T>()[head * d_bias.stride[0] + d * d_bias.stride[1]] += sum;
    }
  }
  if (column_sums)
    for (int64_t c = 0; c < columns; ++c)
      d_bias.as<T>()[(column + c) * d_bias.stride[0]] += column_total[c];
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
