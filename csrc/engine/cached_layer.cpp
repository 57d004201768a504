#include "cached_layer.h"

#include <algorithm>

#include "functional.h"
#include "row_projection.h"

namespace multihead {
namespace {

template <class E>
class CachedLayer {
 public:
  CachedLayer(const CachedCall& call, const KernelSet& set)
      : call_(call),
        spec_(call.layer.attention),
        set_(set),
        kernels_(typed<E>(set)),
        rotation_(kernels_, spec_.rotary),
        grid_{spec_.shape.batch, spec_.shape.queries, call.positions},
        memory_(workers_for(work(), call.layer.resources.threads)),
        rows_(kernels_, rotation_, grid_, memory_) {}

  void forward(const View& out, const WeightsView& weights);

 private:
  using W = PackedWeights<E>;

  int64_t work() const {
    const View& in = call_.layer.query;
    const int64_t width = (spec_.heads.count + 2 * spec_.heads.key_count) * spec_.heads.dim;
    return size_product(grid_.count(), in.size[in.rank - 1], width);
  }
  void project_in(const View& q);
  void attend(const View& q, const View& heads, const WeightsView& weights);
  void project_out(const View& heads, const View& out);
  // Packs weights and runs one phase of products after it.
  template <class Add>
  void run(std::initializer_list<W*> weights, size_t scratch, Add add);
  View heads_view(void* data, int64_t dim) const;

  const CachedCall& call_;
  const AttentionSpec& spec_;
  const KernelSet& set_;
  const Kernels<E>& kernels_;
  const Rotation<E> rotation_;
  const TokenGrid grid_;
  WorkerMemory memory_;
  const RowProjection<E> rows_;
};

// (N, H, L, dim), the heads of a token side by side.
template <class E>
View CachedLayer<E>::heads_view(void* data, int64_t dim) const {
  const int64_t row = spec_.heads.count * dim;
  View v;
  v.data = data;
  v.dtype = kTypeOf<E>;
  v.rank = 4;
  const int64_t size[] = {grid_.batch, spec_.heads.count, grid_.tokens, dim};
  const int64_t stride[] = {grid_.tokens * row, dim, row, 1};
  std::copy(size, size + 4, v.size);
  std::copy(stride, stride + 4, v.stride);
  return v;
}

template <class E>
template <class Add>
void CachedLayer<E>::run(std::initializer_list<W*> weights, size_t scratch, Add add) {
  const auto layout = [&](Arena& arena) {
    for (W* w : weights) w->layout(arena, round_up(grid_.count(), kLane));
    memory_.layout(arena, scratch);
  };
  Arena counted;
  layout(counted);
  const Block64 block(counted.used(), call_.layer.resources.allocator);
  Arena arena(block);
  layout(arena);
  std::vector<Phase> phases;
  for (const W* w : weights) w->add_packing(phases, kernels_);
  join_phases(phases, 0);
  add(phases);
  WorkerState state;
  if constexpr (kRounds<E>) state = {set_.enter, set_.leave};
  run_phases(phases, memory_.workers(), state);
}

template <class E>
void CachedLayer<E>::forward(const View& out, const WeightsView& weights) {
  const int64_t D = spec_.heads.dim, Dv = spec_.heads.value_dim;
  const int64_t n = grid_.count() * spec_.heads.count;
  const Block64 block(size_t(round_up(n * D, kAlign) + n * Dv) * sizeof(E),
                      call_.layer.resources.allocator);
  E* const data = static_cast<E*>(block.data());
  const View q = heads_view(data, D), heads = heads_view(data + round_up(n * D, kAlign), Dv);
  project_in(q);
  attend(q, heads, weights);
  project_out(heads, out);
}

// 2: queries to memory of our own, keys and values to the cache

template <class E>
void CachedLayer<E>::project_in(const View& q) {
  const LayerCall& layer = call_.layer;
  const Parameters& p = layer.parameters;
  W of_q = W::by_head(p.query, kernels_), of_k = W::by_head(p.key, kernels_),
    of_v = W::by_head(p.value, kernels_);
  const int64_t* const first = spec_.shape.query_positions;
  const RowTarget<E> to_q{&of_q, q, nullptr, true}, to_k{&of_k, call_.k, first, true},
      to_v{&of_v, call_.v, first, false};
  const auto bytes = [&](const View& x) {
    return rows_.scratch(x.size[2], larger(spec_.heads.dim, spec_.heads.value_dim));
  };
  const size_t scratch = std::max({bytes(layer.query), bytes(layer.key), bytes(layer.value)});
  run({&of_q, &of_k, &of_v}, scratch, [&](std::vector<Phase>& phases) {
    const size_t begin = phases.size();
    if (same(layer.query, layer.key) && same(layer.key, layer.value)) {
      rows_.add(phases, layer.query, {to_q, to_k, to_v});
    } else {
      rows_.add(phases, layer.query, {to_q});
      rows_.add(phases, layer.key, {to_k});
      rows_.add(phases, layer.value, {to_v});
    }
    join_phases(phases, begin);
  });
}

// 3 and 4

template <class E>
void CachedLayer<E>::attend(const View& q, const View& heads, const WeightsView& weights) {
  AttentionCall call{spec_, q, call_.k, call_.v, call_.layer.resources};
  call.attention.dtype = kTypeOf<E>;
  call.attention.rotary = {};
  call.k.size[2] = call.v.size[2] = spec_.shape.keys;
  attention_forward(call, heads, {}, weights);
}

// 5

template <class E>
void CachedLayer<E>::project_out(const View& heads, const View& out) {
  const HeadWeights& p = call_.layer.parameters.out;
  const int64_t features = p.weight.size[2], width = p.weight.size[0] * p.weight.size[1];
  View one = p.weight;  // the heads side by side, (1, H * Dv, E)
  one.size[0] = 1, one.size[1] = width;
  View x = heads;  // (N, tokens, H * Dv)
  x.rank = 3;
  x.size[1] = grid_.tokens, x.stride[1] = width;
  x.size[2] = width, x.stride[2] = 1;
  View y = out;  // (N, groups, tokens, features of a group)
  y.rank = 4;
  y.size[3] = W::kFeatureGroup, y.stride[3] = out.stride[2];
  y.size[2] = grid_.tokens, y.stride[2] = out.stride[1];
  y.size[1] = divide_up(features, W::kFeatureGroup);
  y.stride[1] = W::kFeatureGroup * out.stride[2];
  W weights = W::by_feature({one, {}}, p.bias, kernels_);
  run({&weights}, rows_.scratch(width, W::kFeatureGroup),
      [&](std::vector<Phase>& phases) { rows_.add(phases, x, {{&weights, y, nullptr, false}}); });
}

}  // namespace

void cached_forward(const CachedCall& call, const View& out, const WeightsView& weights) {
  const KernelSet& set = kernels_or_in_use(call.layer.resources.kernels);
  const AttentionSpec& spec = call.layer.attention;
  const auto run = [&]<class E>() { CachedLayer<E>(call, set).forward(out, weights); };
  if (spec.shape.batch * spec.shape.queries <= kFewTokens)  // in float, as attention of few
    dispatch(computed_in(spec.dtype), run);
  else
    dispatch(set, spec.dtype, run);
}

}  // namespace multihead
