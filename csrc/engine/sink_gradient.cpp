// The gradient of the sinks: what their part of each row's softmax takes from the row.
#include "attention.h"

namespace multihead {

template <class E>
void Attention<E>::add_sink_gradient(std::vector<Phase>& phases, const GradientTiles<E>& tiles,
                                     const View& d_sinks, bool adds) const {
  if (!d_sinks) return;
  auto run = [this, tiles, d_sinks, adds](int64_t head, int) {
    const int64_t at = d_sinks.at(head);
    const Acc<E> sum = sink_gradient(head, tiles);
    d_sinks.set(at, adds ? d_sinks.get<Acc<E>>(at) + sum : sum);
  };
  phases.push_back({plan_.heads.count, std::move(run)});
}

template <class E>
Acc<E> Attention<E>::sink_gradient(int64_t head, const GradientTiles<E>& tiles) const {
  Stat<E> score{};
  sink(head, &score);
  double sum = 0;
  for (size_t b = 0; b < plan_.sequences.size(); ++b)
    for (int64_t t = 0; t < plan_.sequences[b].query_tiles(); ++t) {
      const TileAt at = place({int32_t(b), int32_t(head), 0}, t);
      const int64_t row = plan_.query_row(at), n = at.queries();
      Stat<E> weight[kTile];
      for (int64_t i = 0; i < n; ++i) weight[i] = score - tiles.forward.row_max[row + i];
      kernels_.exp2_all(weight, n);
      for (int64_t i = 0; i < n; ++i)
        sum -= double(weight[i] * tiles.forward.row_inv[row + i]) * double(tiles.delta[row + i]);
    }
  return Acc<E>(sum);
}

template class Attention<BFloat16>;
template class Attention<float>;
template class Attention<double>;

}  // namespace multihead
