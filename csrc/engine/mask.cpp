#include "mask.h"

#include <algorithm>
#include <cmath>

namespace multihead {

uint32_t Dropout::threshold() const {
  if (p >= 1) return 0x10000u;
  return uint32_t(std::min(std::floor(p * 65536.0 + 0.5), 65535.0));
}

double Dropout::keep_scale() const {
  const uint32_t t = threshold();
  return t > 0xFFFFu ? 0.0 : 65536.0 / double(65536u - t);
}

// Philox 4x32-10 of (counter, "multhead") under the seed: the key of all rows of a call.
static void make_call_key(const Dropout& d, uint32_t key[2]) {
  uint32_t c[4] = {uint32_t(d.counter), uint32_t(d.counter >> 32), 0x6D756C74u, 0x68656164u};
  uint32_t k0 = uint32_t(d.seed), k1 = uint32_t(d.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b),
                              uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
    std::copy(next, next + 4, c);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  key[0] = c[0];
  key[1] = c[1];
}

template <class T>
Masks<T>::Masks(const Plan& plan, const Kernels<T>& kernels, const View& attn_mask, bool true_hides,
                bool causal, const Dropout& dropout, const Offsets& offsets)
    : plan_(plan),
      kernels_(kernels),
      mask_(attn_mask),
      true_hides_(true_hides),
      causal_(causal),
      drops_(dropout.p > 0 && dropout.threshold() > 0),
      dropout_(dropout),
      offsets_(offsets) {
  if (drops_) make_call_key(dropout, call_key_);
}

template <class T>
void Masks<T>::layout(Arena& arena, const BatchShape& shape) {
  if (!mask_) return;
  slice_heads_ = mask_.stride[1] ? plan_.heads : smaller(plan_.heads, 1);
  slices_ = (mask_.stride[0] ? shape.batch : smaller(shape.batch, 1)) * slice_heads_;
  query_tiles_ = tiles_of(shape.queries);
  keys_ = shape.keys;
  key_tiles_ = tiles_of(keys_);
  words_ = arena.take<uint64_t>(slices_ * query_tiles_ * keys_);
  kinds_ = arena.take<uint8_t>(slices_ * query_tiles_ * key_tiles_);
}

template <class T>
void Masks<T>::add_phases(std::vector<Phase>& phases, const KernelSet& set) {
  set_ = &set;
  if (!mask_ || slices_ * query_tiles_ * key_tiles_ == 0) return;
  phases.push_back({slices_ * query_tiles_, [this](int64_t task, int) { read(task); }});
}

// Rows of a tile of queries in the mask, null behind the last one.
template <class E>
static void rows_of(const View& mask, int64_t batch, int64_t head, int64_t query_tile,
                    int64_t queries, const E** rows) {
  const E* base = mask.as<const E>() + batch * mask.stride[0] + head * mask.stride[1];
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t query = query_tile * kTile + i;
    rows[i] = query < queries ? base + query * mask.stride[2] : nullptr;
  }
}

template <class T>
void Masks<T>::read(int64_t task) {
  const int64_t slice = task / query_tiles_, query_tile = task % query_tiles_;
  const int64_t batch = slice / slice_heads_, head = slice % slice_heads_;
  const int64_t queries = mask_.size[2], stride = mask_.stride[3];
  uint64_t* words = words_ + task * keys_;
  uint8_t* kinds = kinds_ + task * key_tiles_;
  const int64_t n = tile_tokens(queries, query_tile);
  const uint64_t every = n == kTile ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  const uint8_t* bools[kTile];
  const T* values[kTile];
  if (mask_.dtype == DType::Bool) {
    rows_of(mask_, batch, head, query_tile, queries, bools);
    kernels_.visible_bits(words, bools, stride, keys_, true_hides_);
  } else {
    rows_of(mask_, batch, head, query_tile, queries, values);
  }
  for (int64_t t = 0; t < key_tiles_; ++t) {
    const int64_t keys = tile_tokens(keys_, t);
    uint64_t* at = words + t * kTile;
    bool adds = false;
    if (mask_.dtype != DType::Bool) {
      const T* from[kTile];
      for (int64_t i = 0; i < kTile; ++i)
        from[i] = values[i] ? values[i] + t * kTile * stride : nullptr;
      adds = !kernels_.visible_bits_additive(at, from, stride, keys);
    }
    uint64_t any = 0, all = ~uint64_t(0);
    for (int64_t j = 0; j < keys; ++j) {
      any |= at[j] & every;
      all &= at[j] | ~every;
    }
    kinds[t] = uint8_t((!any ? kHidden : ~all ? kSome : kAll) | (any && adds ? kAdds : 0));
  }
}

template <class T>
void Masks<T>::load_bias(const Sequence& s, int64_t batch, int64_t head, int64_t query_tile,
                         int64_t key_tile, T* bias) const {
  const int64_t lanes = tile_lanes(s.queries, query_tile);
  const int64_t rows = tile_tokens(plan_.rows(s), key_tile);
  const int64_t keys = std::clamp<int64_t>(s.keys - key_tile * kTile, 0, rows);
  const int64_t stride = mask_.stride[3];
  const T* from[kTile];
  rows_of(mask_, batch, head, query_tile, s.queries, from);
  if (s.positions) {
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t at = s.positions[key_tile * kTile + j] * stride;
      for (int64_t i = 0; i < lanes; ++i) bias[j * lanes + i] = from[i] ? from[i][at] : T(0);
    }
  } else {
    for (int64_t i = 0; i < kTile; ++i)
      if (from[i]) from[i] += key_tile * kTile * stride;
    kernels_.pack(bias, lanes, lanes, from, stride, keys);
  }
  kernels_.additive_to_log2(bias, keys * lanes);
  std::fill(bias + keys * lanes, bias + rows * lanes, T(0));
}

template <class T>
bool Masks<T>::tile(const Sequence& s, int64_t batch, int64_t head, int64_t query_tile,
                    int64_t key_tile, const DropoutRows& rows, TileScratch<T>& scratch,
                    TileMask<T>& mask) const {
  const int64_t first = key_tile * kTile, count = tile_tokens(plan_.rows(s), key_tile);
  const int64_t keys = std::clamp<int64_t>(s.keys - first, 0, count);
  const int32_t* positions = s.positions ? s.positions + first : nullptr;
  const int64_t queries = tile_tokens(s.queries, query_tile);
  const uint64_t every = queries == kTile ? ~uint64_t(0) : (uint64_t(1) << queries) - 1;
  mask = {nullptr, nullptr, key_bias_ ? key_bias_ + s.key_lane + first : nullptr, nullptr};

  // The first lane of this tile that sees the key at position p is p - diagonal.
  const int64_t diagonal = query_tile * kTile + offsets_.query - offsets_.key;
  bool partial = false;
  if (causal_ && keys > 0) {
    const int64_t low = positions ? positions[0] : first;
    const int64_t high = positions ? positions[keys - 1] : first + keys - 1;
    if (low - diagonal >= queries && keys == count) return false;
    partial = high > diagonal;
  }

  const uint64_t* words = nullptr;
  bool adds = false;
  if (mask_ && keys > 0) {
    const int64_t row = slice(batch, head) * query_tiles_ + query_tile;
    const uint8_t* kinds = kinds_ + row * key_tiles_;
    words = words_ + row * keys_;
    if (positions) {
      partial = true;
      for (int64_t t = positions[0] / kTile; t <= positions[keys - 1] / kTile; ++t)
        adds |= (kinds[t] & kAdds) != 0;
    } else {
      const uint8_t kind = kinds[key_tile];
      if (!(kind & (kSome | kAll)) && keys == count) return false;
      adds = (kind & kAdds) != 0;
      partial |= (kind & kAll) == 0;
    }
  }

  if (partial) {
    uint64_t any = 0, all = ~uint64_t(0);
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t position = positions ? positions[j] : first + j;
      uint64_t word = words ? words[position] : ~uint64_t(0);
      if (causal_) {
        const int64_t lane = position - diagonal;
        if (lane > 0) word &= lane < kTile ? ~uint64_t(0) << lane : 0;
      }
      scratch.visible[j] = word;
      any |= word & every;
      all &= word | ~every;
    }
    if (!any && keys == count) return false;
    for (int64_t j = keys; j < count; ++j) scratch.visible[j] = ~uint64_t(0);
    if (~all) mask.visible = scratch.visible;
  }
  if (adds) {
    load_bias(s, batch, head, query_tile, key_tile, scratch.bias);
    mask.bias = scratch.bias;
  }
  if (drops_) {
    for (int64_t j = 0; j < keys; ++j)
      scratch.indices[j] = uint32_t((positions ? positions[j] : first + j) + offsets_.key);
    for (int64_t j = keys; j < count; ++j)
      scratch.indices[j] = plan_.bias_key && first + j == s.keys ? kBiasKeyIndex : kZeroRowIndex;
    set_->keep_bits(scratch.keep, rows, tile_lanes(s.queries, query_tile), scratch.indices, count,
                    dropout_.threshold());
    mask.keep = scratch.keep;
  }
  return true;
}

template <class T>
void Masks<T>::dropout_rows(int64_t batch, int64_t head, int64_t query_tile,
                            DropoutRows& rows) const {
  if (drops_)
    set_->dropout_rows(&rows, call_key_, uint32_t(batch + offsets_.batch),
                       uint32_t(head + offsets_.head),
                       uint64_t(query_tile * kTile + offsets_.query));
}

template class Masks<float>;
template class Masks<double>;

}  // namespace multihead
