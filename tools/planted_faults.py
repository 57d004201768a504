"""Faults to plant in the engine, one at a time: `tools/planted.py` sees who finds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One text of a file in the place of another, which stands there once."""

    words: str
    kind: str
    file: str
    right: str
    wrong: str
    finder: str = "tests"  # or the sanitizer: address, threads


ENGINE, KERNELS = "csrc/engine", "csrc/kernels"

FAULTS = (
    Fault(
        "a query sees one key of its future",
        "mask bit",
        f"{ENGINE}/masks.cpp",
        "if (rules_.causal) right_ = 0;",
        "if (rules_.causal) right_ = 1;",
    ),
    Fault(
        "a window loses its oldest key",
        "mask bit",
        f"{ENGINE}/masks.cpp",
        "word &= first_bits(position - begin + 1);",
        "word &= first_bits(position - begin);",
    ),
    Fault(
        "tiles that are hidden in part are seen in whole",
        "mask bit",
        f"{ENGINE}/masks.cpp",
        "~all ? kSome : kAll)",
        "~all ? kAll : kAll)",
    ),
    Fault(
        "all tiles of queries read the mask of the first",
        "index",
        f"{ENGINE}/masks.cpp",
        "mask.address(mask.at(batch, head, tile * kTile + i))",
        "mask.address(mask.at(batch, head, i))",
    ),
    Fault(
        "all heads drop the same weights",
        "index",
        f"{ENGINE}/masks.cpp",
        "uint32_t(at.head + rules_.offsets.head)",
        "uint32_t(rules_.offsets.head)",
    ),
    Fault(
        "a single key that padding leaves is taken for the first",
        "index",
        f"{ENGINE}/plan.cpp",
        "if (s.keys == 0 || positions_.back()",
        "if (s.keys <= 1 || positions_.back()",
    ),
    Fault(
        "ragged weights have no room for the rows after the keys",
        "size",
        f"{ENGINE}/plan.cpp",
        "pairs += s.queries * (s.source_keys + extra_keys());",
        "pairs += s.queries * s.source_keys;",
    ),
    Fault(
        "sequences begin where the last one's padding should be",
        "size",
        f"{ENGINE}/plan.cpp",
        "key_lanes += round_up(s.attended_keys, kLane);",
        "key_lanes += s.attended_keys;",
    ),
    Fault(
        "a sink's score is not taken to base 2",
        "factor",
        f"{ENGINE}/attention.cpp",
        "*score = Stat<E>(sinks.get<Acc<E>>(sinks.at(head)) * kLog2E);",
        "*score = Stat<E>(sinks.get<Acc<E>>(sinks.at(head)));",
    ),
    Fault(
        "a negative scale is taken for a positive one",
        "sign",
        f"{ENGINE}/attention.cpp",
        "if (log2_scale_ >= 0) return;",
        "if (log2_scale_ >= -1e30) return;",
    ),
    Fault(
        "of three parts of long sums the second is lost",
        "lost part",
        f"{ENGINE}/attention.cpp",
        "      if (block.out == scratch.part_out)\n        kernels_.forward_merge(all, block);",
        "      if (block.out == scratch.part_out)\n        (void)all;",
    ),
    Fault(
        "the gradient of queries is turned on instead of back",
        "sign",
        f"{ENGINE}/attention_backward.cpp",
        "rotation_.angles(at, Tokens::Queries, scratch.angles),\n                   true);",
        "rotation_.angles(at, Tokens::Queries, scratch.angles),\n                   false);",
    ),
    Fault(
        "a gradient is added to what memory held, where the first keys are hidden",
        "missing zero",
        f"{ENGINE}/attention_backward.cpp",
        "if (group == seen.begin)",
        "if (group == 0)",
    ),
    Fault(
        "sums over keys keep those of the last task",
        "missing zero",
        f"{ENGINE}/attention_backward.cpp",
        "std::fill(sums.d_v, sums.d_v + keys * value_pitch_, Acc<E>(0));",
        "std::fill(sums.d_v, sums.d_v + keys, Acc<E>(0));",
    ),
    Fault(
        "a phase begins before the last task of the one before has ended",
        "missing wait",
        f"{ENGINE}/thread_pool.cpp",
        "at.done.load(std::memory_order_acquire) < phase.tasks; ++spins)",
        "at.done.load(std::memory_order_acquire) < phase.tasks - 1; ++spins)",
    ),
    Fault(
        "a call returns while a worker is still inside it",
        "missing wait",
        f"{ENGINE}/thread_pool.cpp",
        "while (inside_.load() > 0 && !region.orphaned()) pause();",
        "",
        "threads",
    ),
    Fault(
        "parts are merged without the factor between their maxima",
        "factor",
        f"{ENGINE}/partial.cpp",
        "if (part.seen) sum_ += part.sum * factor;",
        "if (part.seen) sum_ += part.sum;",
    ),
    Fault(
        "runs of a packed batch draw the dropout of the first",
        "index",
        f"{ENGINE}/sequence_runs.cpp",
        "  rules.offsets.batch += run.first;\n",
        "",
    ),
    Fault(
        "grouped heads read the first one's result",
        "index",
        f"{ENGINE}/split_keys.cpp",
        "const int64_t row = h % heads.group() * queries_ + i;",
        "const int64_t row = i;",
    ),
    Fault(
        "gradients of weights lose the tokens after the last reduction",
        "bound",
        f"{ENGINE}/weight_gradient.cpp",
        "if (since < kReduceTokens && i < tiles.size()) continue;",
        "if (since < kReduceTokens) continue;",
    ),
    Fault(
        "rows that fill up a head are counted as its features",
        "stride",
        f"{ENGINE}/weight_gradient.cpp",
        "const int64_t padded = plan_.layout.rows(g.head_dim);",
        "const int64_t padded = g.head_dim;",
    ),
    Fault(
        "one reading of the input serves keys that have rows after them",
        "layout",
        f"{ENGINE}/layer.cpp",
        "!call_.attention.shape.key_padding && run_.plan.extra_keys() == 0;",
        "!call_.attention.shape.key_padding;",
    ),
    Fault(
        "of a gradient that queries and keys share, the first half is lost",
        "overwritten sum",
        f"{ENGINE}/layer.cpp",
        "d.key, d.key_adds || k_follows);",
        "d.key, d.key_adds);",
    ),
    Fault(
        "the gradient of a mask is added to what memory held",
        "missing zero",
        f"{ENGINE}/mask_gradient.cpp",
        "  rows.clear();\n",
        "",
    ),
    Fault(
        "the gradient of sinks points the other way",
        "sign",
        f"{ENGINE}/sink_gradient.cpp",
        "sum -= double(weight[i]",
        "sum += double(weight[i]",
    ),
    Fault(
        "averaged weights are all made with the last head's slope",
        "index",
        f"{ENGINE}/attention_weights.cpp",
        "      load_rules(block, here);\n",
        "",
    ),
    Fault(
        "a cache is attended to its capacity",
        "bound",
        f"{ENGINE}/cached_layer.cpp",
        "  call.k.size[2] = call.v.size[2] = spec_.shape.keys;\n",
        "  call.attention.shape.keys = call.k.size[2];\n",
    ),
    Fault(
        "new keys are written to the begin of a cache",
        "index",
        f"{ENGINE}/row_projection.cpp",
        "(target.first ? target.first[sequence] : 0) + token",
        "token",
    ),
    Fault(
        "biases of output features that lie apart are read side by side",
        "stride",
        f"{ENGINE}/packed_weights.cpp",
        "p.bias_group_stride_ = kFeatureGroup * bias.stride[0];",
        "p.bias_group_stride_ = kFeatureGroup;",
    ),
    Fault(
        "a worker's memory is too small for a tile of outputs",
        "size",
        f"{ENGINE}/attention.cpp",
        "        out(arena.take<Acc<E>>(plan.layout.rows(plan.heads.value_dim) * kTile)),\n",
        "        out(arena.take<Acc<E>>(plan.layout.rows(plan.heads.value_dim) * kLane)),\n",
        "address",
    ),
    Fault(
        "sizes are not looked at",
        "missing check",
        f"{ENGINE}/spec.cpp",
        "if ((scores + rows) * width < double(kMostElements)) return;",
        "return;",
    ),
    Fault(
        "offsets that fall are taken",
        "missing check",
        "csrc/faces/checks.cpp",
        "rising &= offsets[b] <= offsets[b + 1];",
        "rising &= offsets[b] <= total;",
    ),
    Fault(
        "arrays that may not be written are",
        "missing check",
        "csrc/python/views.cpp",
        'throw nb::value_error((std::string(name) + ": expected a writable array").c_str());',
        "(void)name;",
    ),
    Fault(
        "backward takes the cache of another key mask",
        "missing check",
        "csrc/bnns/backward.cpp",
        "header.mask != mask_hash(call.key_mask) || ",
        "",
    ),
    Fault(
        "two gradients may lie over each other",
        "missing check",
        "csrc/bnns/backward.cpp",
        "      } else {\n        expect_apart(t, other);\n",
        "      } else {\n",
    ),
    Fault(
        "a softmax forgets to shrink the sum of the keys before",
        "factor",
        f"{KERNELS}/attention_forward.h",
        "fma(load(total), load(alpha + lane + j * W), sum[j])",
        "load(total) + sum[j]",
    ),
    Fault(
        "hidden keys keep their probability",
        "mask bit",
        f"{KERNELS}/attention_forward.h",
        "if (Masked) p[j] = select(mask_of_bits<A>(t.visible[r], int(lane) + j * W), p[j], "
        "Vec<A>{});",
        "",
    ),
    Fault(
        "delta is added to the gradient of scores",
        "sign",
        f"{KERNELS}/attention_backward.h",
        "d = p * (d - delta[j]);",
        "d = p * (d + delta[j]);",
    ),
    Fault(
        "pairs of keys that begin at an odd one draw anew too late",
        "index",
        f"{KERNELS}/dropout.h",
        "if (c == 0 || indices[c] >> 1 != indices[c - 1] >> 1)",
        "if (c % 2 == 0)",
    ),
    Fault(
        "a mask whose columns lie apart is read side by side",
        "stride",
        f"{KERNELS}/masks.h",
        "word |= uint64_t(row[(c0 + c) * stride] != 0) << c;",
        "word |= uint64_t(row[c0 + c] != 0) << c;",
    ),
    Fault(
        "bfloat16 is cut off, not rounded",
        "rounding",
        f"{KERNELS}/vec_half.h",
        "const U32 rounded = (bits + 0x7FFFu + (top & 1)) >> 16;",
        "const U32 rounded = bits >> 16;",
    ),
    Fault(
        "a coefficient of exp2 is wrong in its sixth digit",
        "number",
        f"{KERNELS}/exp2.h",
        "0.240226477f,",
        "0.240226977f,",
    ),
    Fault(
        "a cap in float64 is as exact as in float32",
        "number",
        f"{KERNELS}/tanh.h",
        "sizeof(T) == 4 ? T(-40) : T(-64)",
        "T(-40)",
    ),
)
