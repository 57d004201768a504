#include "functional.h"

#include <algorithm>
#include <limits>

#include "keys.h"
#include "sequence_runs.h"
#include "split_keys.h"

namespace multihead {
namespace {

template <class E>
class Functional {
 public:
  Functional(const AttentionCall& call, const KernelSet& set)
      : call_(call), run_(call.attention, call.resources, set), phases_(run_.phases) {}

  void forward(const View& out, const View& stats, const WeightsView& weights);
  void backward(const View& stats, const View& delta, const View& d_out,
                const AttentionGradients& d);

 private:
  // f(place, head of the array) for each tile of one head's queries or keys; a phase.
  template <class F>
  void each_tile(Tokens tokens, F f);
  // Whether attention reads keys or values where they lie; else they are packed first.
  bool lies_right(const View& of) const;
  void find_keys();
  void read_keys();
  void pack(const View& from, E* to, TileOf what);
  void clear_keys(const View& to);
  // One value per query, to or from the lanes of its tile: f(value, whether it is real, n, h, q),
  // where q counts from the array's first token.
  template <class F>
  void each_row(Stat<E>* base, F f);

  static Stat<E>& statistic(const View& stats, int64_t which, int64_t n, int64_t h, int64_t q) {
    return stats.as<Stat<E>>()[stats.at(which, n, h, q)];
  }

  const AttentionCall& call_;
  PreparedCall<E> run_;
  std::vector<Phase>& phases_;
  AttentionTiles<E> tiles_;
  GradientTiles<E> gradients_;
};

template <class E>
template <class F>
void Functional<E>::each_tile(Tokens tokens, F f) {
  const Plan& plan = run_.plan;
  const std::vector<TileRef>& tiles = plan.tiles(tokens);
  const bool queries = tokens == Tokens::Queries;
  const int64_t heads = queries ? plan.heads.count : plan.heads.key_count;
  const int64_t step = queries ? 1 : plan.heads.group();
  auto task_of = [&plan, &tiles, heads, step, f](int64_t task, int) {
    const TileRef ref = tiles[size_t(task / heads)];
    const int64_t head = task % heads;
    f(TileAt{plan.sequence(ref), ref.sequence, head * step, ref.tile, ref.tile}, head);
  };
  phases_.push_back({int64_t(tiles.size()) * heads, std::move(task_of)});
}

// Rows that lie far apart fall into the same places of a cache, and are copied if they are read
// often.
template <class E>
bool Functional<E>::lies_right(const View& of) const {
  constexpr int64_t kOften = 5;
  const BatchShape& shape = call_.attention.shape;
  const int64_t row = of.stride[2], features = of.size[3];
  const int64_t times = run_.plan.heads.group() * tiles_of(shape.queries);
  return run_.kernels.reads_rows && of.dtype == kTypeOf<E> && !shape.key_padding && features > 0 &&
         (of.stride[3] == 1 || features == 1) && row >= features &&
         (row <= 2 * features || times < kOften);
}

template <class E>
void Functional<E>::find_keys() {
  if (lies_right(call_.k)) tiles_.in_place.k = call_.k;
  if (lies_right(call_.v)) tiles_.in_place.v = call_.v;
}

template <class E>
void Functional<E>::read_keys() {
  if (!tiles_.in_place.k) pack(call_.k, tiles_.k, TileOf::Keys);
  if (!tiles_.in_place.v) pack(call_.v, tiles_.v, TileOf::Values);
}

template <class E>
void Functional<E>::pack(const View& from, E* to, TileOf what) {
  each_tile(Tokens::Keys, [=, this](const TileAt& at, int64_t head) {
    const TokenRows source = head_rows(from, at.sequence, Tokens::Keys, at.batch, head);
    void* rows[kTile];
    source.tile(at.key_tile, at.sequence.keys, rows);
    run_.kernels.pack(to + run_.plan.key_tile_by_head(at, from.size[3]), at.key_lanes(),
                      source.source(rows), from.size[3], what);
  });
}

// Keys that do not exist have no gradient.
template <class E>
void Functional<E>::clear_keys(const View& to) {
  if (!to || !call_.attention.shape.key_lengths) return;
  auto clear = [=, this](int64_t task, int) {
    const int64_t heads = run_.plan.heads.key_count;
    const Sequence& s = run_.plan.sequences[size_t(task / heads)];
    const TokenRows rows = head_rows(to, s, Tokens::Keys, task / heads, task % heads);
    for (int64_t j = s.keys; j < s.source_keys; ++j)
      clear_elements(rows.row(j), rows.stride, to.size[3], rows.type);
  };
  phases_.push_back(
      {int64_t(run_.plan.sequences.size()) * run_.plan.heads.key_count, std::move(clear)});
}

template <class E>
template <class F>
void Functional<E>::each_row(Stat<E>* base, F f) {
  each_tile(Tokens::Queries, [=, this](const TileAt& at, int64_t) {
    Stat<E>* const row = base + run_.plan.query_row(at);
    const int64_t first = at.sequence.first_query + at.query_tile * kTile;
    for (int64_t i = 0; i < at.query_lanes(); ++i)
      f(row[i], i < at.queries(), at.batch, at.head, first + i);
  });
}

template <class E>
void Functional<E>::forward(const View& out, const View& stats, const WeightsView& weights) {
  tiles_.in_place.q = call_.q;
  tiles_.in_place.out = out;
  find_keys();
  const auto layout = [&](Arena& arena) {
    tiles_.layout_inputs(arena, run_.plan);
    tiles_.layout_results(arena, run_.plan);
    run_.masks.layout(arena);
  };
  const size_t scratch =
      std::max(run_.attention.forward_scratch(), run_.attention.weights_scratch(weights));
  run_.run(
      layout, [](Arena&) {}, scratch,
      [&] {
        run_.masks.add_reading(phases_);
        read_keys();
        join_phases(phases_, 0);
        run_.attention.add_forward(phases_, tiles_);
        const size_t last = phases_.size();
        run_.attention.add_weights(phases_, tiles_, weights);
        if (stats) {
          const auto keep = [&stats](int64_t which) {
            return [&stats, which](Stat<E>& x, bool real, int64_t n, int64_t h, int64_t q) {
              if (real) statistic(stats, which, n, h, q) = x;
            };
          };
          each_row(tiles_.row_max, keep(0));
          each_row(tiles_.row_inv, keep(1));
        }
        join_phases(phases_, last);
      });
}

template <class E>
void Functional<E>::backward(const View& stats, const View& delta, const View& d_out,
                             const AttentionGradients& d) {
  tiles_.in_place.q = call_.q;
  tiles_.in_place.d_out = d_out;
  tiles_.in_place.gradients = true;
  tiles_.in_place.d_q = d.q;
  tiles_.in_place.d_k = d.k;
  tiles_.in_place.d_v = d.v;
  find_keys();
  const auto layout = [&](Arena& arena) {
    tiles_.layout_inputs(arena, run_.plan);
    tiles_.layout_statistics(arena, run_.plan);
    gradients_.forward = tiles_;
    gradients_.layout(arena, run_.plan);
    run_.masks.layout(arena);
  };
  const auto layout_workers = [&](Arena& arena) { run_.attention.layout_backward(arena); };
  run_.run(layout, layout_workers, run_.attention.backward_scratch(tiles_.in_place), [&] {
    run_.masks.add_reading(phases_);
    read_keys();
    const auto given = [&stats](int64_t which, Stat<E> nothing) {
      return [&stats, which, nothing](Stat<E>& x, bool real, int64_t n, int64_t h, int64_t q) {
        x = real ? statistic(stats, which, n, h, q) : nothing;
      };
    };
    each_row(tiles_.row_max, given(0, std::numeric_limits<Stat<E>>::infinity()));
    each_row(tiles_.row_inv, given(1, 0));
    each_row(gradients_.delta, [&delta](Stat<E>& x, bool real, int64_t n, int64_t h, int64_t q) {
      x = real ? delta.as<Stat<E>>()[delta.at(n, h, q)] : Stat<E>(0);
    });
    join_phases(phases_, 0);
    run_.attention.add_backward(phases_, gradients_);
    const size_t last = phases_.size();
    clear_keys(d.k);
    clear_keys(d.v);
    run_.attention.add_mask_gradient(phases_, gradients_, d.mask);
    run_.attention.add_sink_gradient(phases_, gradients_, d.sinks, false);
    join_phases(phases_, last);
  });
}

template <class E>
void row_dot_of_head(const View& a, const View& b, const View& result, int64_t n, int64_t h) {
  const TokenRows x = head_rows(a, n, h), y = head_rows(b, n, h);
  for (int64_t q = 0; q < a.size[2]; ++q) {
    const void *left = x.row(q), *right = y.row(q);
    Stat<E> sum = 0;
    for (int64_t d = 0; d < a.size[3]; ++d)
      sum += element<Stat<E>>(left, d * x.stride, x.type) *
             element<Stat<E>>(right, d * y.stride, y.type);
    result.as<Stat<E>>()[result.at(n, h, q)] = sum;
  }
}

}  // namespace

void attention_forward(const AttentionCall& call, const View& out, const View& stats,
                       const WeightsView& weights) {
  if (const std::vector<SequenceRun> runs = sequence_runs(call); runs.size() > 1) {
    for (const SequenceRun& run : runs) attention_forward(part_of(call, run), out, stats, weights);
    return;
  }
  if (splits_keys(call) && !weights.heads) return split_keys_forward(call, out, stats);
  const KernelSet& set = kernels_or_in_use(call.resources.kernels);
  dispatch(set, call.attention.dtype,
           [&]<class E>() { Functional<E>(call, set).forward(out, stats, weights); });
}

void attention_backward(const AttentionCall& call, const View& stats, const View& delta,
                        const View& d_out, const AttentionGradients& gradients) {
  const KernelSet& set = kernels_or_in_use(call.resources.kernels);
  dispatch(set, call.attention.dtype,
           [&]<class E>() { Functional<E>(call, set).backward(stats, delta, d_out, gradients); });
}

void row_dot(const View& a, const View& b, const View& result) {
  const int64_t heads = a.size[1];
  dispatch(a.dtype, [&]<class E>() {
    run_phases({{a.size[0] * heads,
                 [&](int64_t task, int) {
                   row_dot_of_head<E>(a, b, result, task / heads, task % heads);
                 }}},
               num_threads());
  });
}

}  // namespace multihead
