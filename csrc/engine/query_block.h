// What the passes of attention's backward share: one block of queries, ready for any tile of keys.
#pragma once

#include "attention.h"

namespace multihead {

template <class E>
struct Attention<E>::QueryBlock {
  BackwardBlock<E> block;
  E *q, *d_out, *q_rows, *d_out_rows, *v_tokens, *p, *ds;
  Acc<E>*s, *d_p, *d_weights;
  DropoutRows* rows;
  TileScratch<E>* mask;
  bool checked = false;  // block.finite is known: it matters where a mask hides something

  QueryBlock(Arena& arena, const Attention& a)
      : q(arena.take<E>(a.plan_.layout.size(a.plan_.heads.dim, kTile))),
        d_out(arena.take<E>(a.plan_.layout.size(a.plan_.heads.value_dim, kTile))),
        q_rows(arena.take<E>(a.head_pitch_ * kTile)),
        d_out_rows(arena.take<E>(a.value_pitch_ * kTile)),
        v_tokens(arena.take<E>(a.plan_.layout.size(a.plan_.heads.value_dim, kTile))),
        s(take_scores<E>(arena, p)),
        d_p(take_scores<E>(arena, ds)),
        d_weights(arena.take<Acc<E>>(kTile * kTile)),
        rows(arena.take<DropoutRows>(1)),
        mask(arena.take<TileScratch<E>>(1)) {
    block.s = s;
    block.p = p;
    block.d_p = d_p;
    block.ds = ds;
    if (a.rules_.softcap != 0) block.cap_slope = arena.take<Acc<E>>(kTile * kTile);
    block.ds_columns = kRounds<E> ? arena.take<E>(kTile * kTile) : ds;
  }

  // Scales and transposes what the block needs of q and d_out.
  void load(const Attention& a, const GradientTiles<E>& tiles, const TileAt& at) {
    const int64_t D = a.plan_.heads.dim, Dv = a.plan_.heads.value_dim;
    const Acc<E> keep = Acc<E>(a.masks_.keep_scale());
    const int64_t row = a.plan_.query_row(at);
    const E* query = a.query_tile(tiles.forward, at, q);
    const E* gradient = a.query_tile(tiles.forward.in_place.d_out, tiles.d_out, at, Dv, d_out);
    block.queries = at.queries();
    block.row_max = tiles.forward.row_max + row;
    block.row_inv = tiles.forward.row_inv + row;
    block.delta = tiles.delta + row;
    const int64_t lanes = at.query_lanes();
    a.kernels_.tile_to_rows(q_rows, a.head_pitch_, query, lanes, D, Acc<E>(1));
    a.kernels_.tile_to_rows(d_out_rows, a.value_pitch_, gradient, lanes, Dv, a.factor_of_rows());
    a.load_queries(block, at, query, q);
    block.d_out = gradient;
    if constexpr (kRounds<E>) {
      block.gradient_factor = keep;
    } else if (a.masks_.drops()) {
      a.kernels_.scale(d_out, gradient, a.plan_.layout.size(Dv, block.lanes), keep);
      block.d_out = d_out;
    }
    block.q_rows = q_rows;
    block.d_out_rows = d_out_rows;
    block.head_pitch = a.head_pitch_;
    block.value_pitch = a.value_pitch_;
    checked = false;
  }

  // With keys and values in the forms that their products want, where they do not lie so.
  void meet(const Attention& a, const GradientTiles<E>& tiles, const TileAt& at,
            const TileMask<E>& mask_of_tile) {
    a.load_keys(block, tiles.forward, at, mask_of_tile);
    if (block.visible && !checked) {
      const TileLayout& layout = a.plan_.layout;
      block.finite = a.kernels_.finite(block.q, layout.size(block.head_dim, block.lanes)) &&
                     a.kernels_.finite(block.d_out, layout.size(block.value_dim, block.lanes));
      checked = true;
    }
    block.d_weights = nullptr;
    if (tiles.d_weights.heads) {
      a.load_weights(tiles.d_weights, at,
                     Acc<E>(a.masks_.keep_scale() * tiles.d_weights.share(a.plan_)), d_weights);
      block.d_weights = d_weights;
    }
  }
};

}  // namespace multihead
