#include "masks.h"

#include <algorithm>

namespace multihead {
namespace {

constexpr uint64_t kEverything = ~uint64_t(0);

void* column_of(const View& mask, void* row, int64_t column) {
  return row ? static_cast<char*>(row) + column * mask.stride[3] * item_bytes(mask.dtype) : nullptr;
}

uint64_t first_bits(int64_t n) {
  return n >= kTile ? kEverything : n > 0 ? (uint64_t(1) << n) - 1 : 0;
}

}  // namespace

template <class E>
Masks<E>::Masks(const Plan& plan, const KernelSet& set, const Kernels<E>& kernels,
                const AttentionSpec& spec)
    : plan_(plan),
      set_(set),
      kernels_(kernels),
      rules_(spec.rules),
      shape_(spec.shape),
      drops_(rules_.dropout.p > 0 && rules_.dropout.threshold() > 0),
      padding_is_float_(shape_.key_padding && shape_.key_padding.dtype != DType::Bool) {
  if (rules_.window_left >= 0) left_ = smaller(rules_.window_left, kAny);
  if (rules_.window_right >= 0) right_ = smaller(rules_.window_right, kAny);
  if (rules_.causal) right_ = 0;
  if (drops_) dropout_key_ = set.dropout_key(rules_.dropout.seed, rules_.dropout.counter);
  if (!rules_.mask) return;
  slice_heads_ = rules_.mask.stride[1] ? plan.heads.count : smaller(plan.heads.count, 1);
  slices_ = (rules_.mask.stride[0] ? shape_.batch : smaller(shape_.batch, 1)) * slice_heads_;
  query_tiles_ = tiles_of(shape_.queries);
  key_tiles_ = tiles_of(shape_.keys);
}

template <class E>
void Masks<E>::layout(Arena& arena) {
  if (padding_is_float_) {
    key_bias_ = arena.take<Acc<E>>(plan_.key_lanes);
    padding_adds_ = arena.take<uint8_t>(shape_.batch);
  }
  words_ = arena.take<uint64_t>(slices_ * query_tiles_ * shape_.keys);
  kinds_ = arena.take<uint8_t>(slices_ * query_tiles_ * key_tiles_);
}

template <class E>
void Masks<E>::add_reading(std::vector<Phase>& phases) {
  if (padding_is_float_)
    phases.push_back({shape_.batch, [this](int64_t task, int) { read_padding(task); }});
  if (slices_ * query_tiles_ * key_tiles_ > 0)
    phases.push_back({slices_ * query_tiles_, [this](int64_t task, int) { read_queries(task); }});
}

template <class E>
void Masks<E>::read_padding(int64_t sequence) {
  const Sequence& s = plan_.sequences[size_t(sequence)];
  const View& mask = shape_.key_padding;
  Acc<E>* const row = key_bias_ + s.key_lane;
  bool adds = false;
  for (int64_t j = 0; j < s.keys; ++j) {
    row[j] = mask.get<Acc<E>>(mask.at(sequence, s.position(j)));
    adds |= row[j] != Acc<E>(0);
  }
  padding_adds_[sequence] = adds;
  kernels_.additive_to_log2(row, s.keys);
  std::fill(row + s.keys, row + s.attended_keys, Acc<E>(0));
}

// Rows of a tile of queries in the mask, null after the last one.
template <class E>
void Masks<E>::mask_rows(int64_t batch, int64_t head, int64_t tile, void** rows) const {
  const View& mask = rules_.mask;
  const int64_t n = tile_tokens(mask.size[2], tile);
  for (int64_t i = 0; i < kTile; ++i)
    rows[i] = i < n ? mask.address(mask.at(batch, head, tile * kTile + i)) : nullptr;
}

template <class E>
void Masks<E>::read_queries(int64_t task) {
  const View& mask = rules_.mask;
  const int64_t slice = task / query_tiles_, query_tile = task % query_tiles_;
  const int64_t batch = slice / slice_heads_, head = slice % slice_heads_;
  const int64_t stride = mask.stride[3];
  uint64_t* words = words_ + task * shape_.keys;
  uint8_t* kinds = kinds_ + task * key_tiles_;
  const uint64_t every = first_bits(tile_tokens(mask.size[2], query_tile));
  void* rows[kTile];
  mask_rows(batch, head, query_tile, rows);
  if (mask.dtype == DType::Bool)
    kernels_.visible_bits(words, reinterpret_cast<const uint8_t* const*>(rows), stride, shape_.keys,
                          rules_.true_hides);
  for (int64_t t = 0; t < key_tiles_; ++t) {
    const int64_t keys = tile_tokens(shape_.keys, t);
    uint64_t* at = words + t * kTile;
    bool adds = false;
    if (mask.dtype != DType::Bool) {
      void* from[kTile];
      for (int64_t i = 0; i < kTile; ++i) from[i] = column_of(mask, rows[i], t * kTile);
      adds = kernels_.visible_bits_additive(at, {from, stride, mask.dtype}, keys);
    }
    uint64_t any = 0, all = kEverything;
    for (int64_t j = 0; j < keys; ++j) {
      any |= at[j] & every;
      all &= at[j] | ~every;
    }
    kinds[t] = uint8_t((!any ? kHidden : ~all ? kSome : kAll) | (any && adds ? kAdds : 0));
  }
}

template <class E>
auto Masks<E>::query_row(const TileAt& at) const -> QueryRow {
  const View& mask = rules_.mask;
  const int64_t slice =
      (mask.stride[0] ? at.batch : 0) * slice_heads_ + (mask.stride[1] ? at.head : 0);
  const int64_t row = slice * query_tiles_ + at.query_tile;
  return {words_ + row * shape_.keys, kinds_ + row * key_tiles_};
}

template <class E>
void Masks<E>::load_bias(const TileAt& at, Acc<E>* bias) const {
  const Sequence& s = at.sequence;
  const int64_t lanes = at.query_lanes(), rows = at.keys(), keys = at.given_keys();
  const View& mask = rules_.mask;
  void* from[kTile];
  mask_rows(at.batch, at.head, at.query_tile, from);
  for (int64_t i = at.queries(); i < kTile; ++i) from[i] = nullptr;  // of longer sequences
  if (s.positions) {
    Stored<Acc<E>>::as(mask.dtype, [&]<class S>() {
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t column = s.position(at.first_key() + j) * mask.stride[3];
        for (int64_t i = 0; i < lanes; ++i)
          bias[j * lanes + i] = from[i] ? widen(static_cast<const S*>(from[i])[column]) : Acc<E>(0);
      }
    });
  } else {
    for (void*& row : from) row = column_of(mask, row, at.first_key());
    kernels_.pack_scores(bias, lanes, {from, mask.stride[3], mask.dtype}, keys);
  }
  kernels_.additive_to_log2(bias, keys * lanes);
  std::fill(bias + keys * lanes, bias + rows * lanes, Acc<E>(0));
}

template <class E>
void Masks<E>::draw(const TileAt& at, const DropoutRows& rows, TileScratch<E>& scratch) const {
  const Sequence& s = at.sequence;
  const int64_t first = at.first_key(), count = at.keys(), keys = at.given_keys();
  for (int64_t j = 0; j < keys; ++j)
    scratch.indices[j] = uint32_t(s.position(first + j) + rules_.offsets.key);
  for (int64_t j = keys; j < count; ++j)
    scratch.indices[j] = plan_.bias_key && first + j == s.keys ? kBiasKeyIndex : kZeroRowIndex;
  set_.keep_bits(scratch.keep, rows, at.query_lanes(), scratch.indices, count,
                 rules_.dropout.threshold());
}

template <class E>
KeyRange Masks<E>::range(const TileAt& at) const {
  const Sequence& s = at.sequence;
  KeyRange range{0, s.key_tiles()};
  const int64_t first = position(at), end = first + at.queries();
  if (left_ < kAny) range.begin = smaller(s.keys_before(first - left_) / kTile, range.end);
  if (right_ < kAny && s.attended_keys == s.keys)  // all queries see those after the keys
    range.end = larger(range.begin, tiles_of(s.keys_before(end + right_)));
  return range;
}

template <class E>
bool Masks<E>::tile(const TileAt& at, const DropoutRows& rows, TileScratch<E>& scratch,
                    TileMask<E>& mask) const {
  const Sequence& s = at.sequence;
  const int64_t first = at.first_key(), count = at.keys(), keys = at.given_keys();
  const int64_t queries = at.queries();
  const uint64_t every = first_bits(queries);
  const bool padding_adds = padding_is_float_ && padding_adds_[at.batch];
  mask = {};
  if (padding_adds) mask.key_bias = key_bias_ + s.key_lane + first;

  // Lane i sees the key at position p where p - last <= i <= p - begin.
  const int64_t last = position(at) + right_, begin = position(at) - left_;
  bool partial = false;
  if (keys > 0) {
    const int64_t low = s.position(first), high = s.position(first + keys - 1);
    if ((low - last >= queries || high < begin) && keys == count) return false;
    partial = high > last || low - begin < queries - 1;
  }

  const uint64_t* words = nullptr;
  bool adds = false;
  if (rules_.mask && keys > 0) {
    const QueryRow row = query_row(at);
    words = row.words;
    if (s.positions) {
      partial = true;
      const int64_t last = s.position(first + keys - 1) / kTile;
      for (int64_t t = s.position(first) / kTile; t <= last; ++t)
        adds |= (row.kinds[t] & kAdds) != 0;
    } else {
      const uint8_t kind = row.kinds[at.key_tile];
      if (!(kind & (kSome | kAll)) && keys == count) return false;
      adds = (kind & kAdds) != 0;
      partial |= (kind & kAll) == 0;
    }
  }

  if (partial) {
    uint64_t any = 0, all = kEverything;
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t position = s.position(first + j);
      uint64_t word = words ? words[position] : kEverything;
      if (position > last) word &= ~first_bits(position - last);
      if (position - begin < kTile) word &= first_bits(position - begin + 1);
      scratch.visible[j] = word;
      any |= word & every;
      all &= word | ~every;
    }
    if (!any && keys == count) return false;
    std::fill(scratch.visible + keys, scratch.visible + count, kEverything);
    if (~all) mask.visible = scratch.visible;
  }
  if (adds) {
    load_bias(at, scratch.bias);
    mask.bias = scratch.bias;
  }
  if (rules_.alibi_slopes) {
    for (int64_t j = 0; j < keys; ++j)
      scratch.distance[j] = Acc<E>(s.position(first + j) - position(at));
    mask.distance = scratch.distance;
  }
  if (drops_) {
    draw(at, rows, scratch);
    mask.keep = scratch.keep;
  }
  return true;
}

template <class E>
void Masks<E>::dropout_rows(const TileAt& at, DropoutRows& rows) const {
  if (!drops_) return;
  const bool shared = rules_.dropout.shared;
  set_.dropout_rows(&rows, dropout_key_, shared ? 0 : uint32_t(at.batch + rules_.offsets.batch),
                    shared ? 0 : uint32_t(at.head + rules_.offsets.head),
                    uint64_t(at.query_tile * kTile + rules_.offsets.query));
}

template class Masks<BFloat16>;
template class Masks<float>;
template class Masks<double>;

}  // namespace multihead
