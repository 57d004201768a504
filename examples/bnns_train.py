"""The twin of bnns_train.c: one attention layer trained through the BNNS API, from Python."""

from __future__ import annotations

from ctypes import c_size_t

import numpy as np

from multihead import bnns

BATCH, TOKENS, MODEL, HEADS, DIM, STEPS = 16, 12, 8, 2, 4, 200
ROWS = bnns.DataLayout.RowMajorMatrix
describe = bnns.NDArrayDescriptor.from_array


def projection(
    target: np.ndarray, weights: np.ndarray, *, with_data: bool = False
) -> bnns.MHAProjectionParameters:
    """Describe a projection, or its gradients; `target` is one sequence of a batch."""
    p = bnns.MHAProjectionParameters(
        target_desc=describe(target, ROWS, data=with_data), weights=describe(weights)
    )
    p.target_desc.stride[2] = TOKENS * MODEL  # from one sequence to the next
    return p


def main() -> None:
    """Train and print the falling loss."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCH, TOKENS, MODEL), dtype=np.float32)
    # the answer: the mean of the sequence, with signs turned in one half of the features
    signs = np.where(np.arange(MODEL) < MODEL // 2, np.float32(1), np.float32(-1))
    wanted = x.mean(1, keepdims=True) * signs

    shapes = [(MODEL, DIM, HEADS)] * 3 + [(HEADS * DIM, MODEL)]
    weights = [
        rng.standard_normal(s, dtype=np.float32) / np.float32(MODEL) ** np.float32(0.5)
        for s in shapes
    ]
    grads = [np.zeros_like(w) for w in weights]
    layer = bnns.LayerParametersMultiheadAttention(
        **{
            name: projection(x[0], w)
            for name, w in zip(("query", "key", "value", "output"), weights, strict=True)
        }
    )
    options = bnns.FilterParameters(flags=bnns.FilterFlags.UseClientPtr)  # it sees our steps
    out, d_out = np.empty_like(x), np.empty_like(x)
    stride = TOKENS * MODEL

    with bnns.Filter(layer, options) as filter_:
        inputs = (x, stride, x, stride, None, 0, x, stride)
        size = c_size_t()
        forward = bnns.BNNSApplyMultiheadAttention
        forward(filter_, BATCH, *inputs, out, stride, None, size, None, None, None)
        cache = np.empty(size.value, np.uint8)
        for step in range(STEPS + 1):
            forward(filter_, BATCH, *inputs, out, stride, None, size, cache, None, None)
            error = out - wanted
            d_out[...] = 2 / error.size * error
            if step % 40 == 0:
                print(f"step {step:3}  loss {np.mean(error**2):.5f}")
            d_query, d_key, d_value = (projection(x[0], g) for g in grads[:3])
            bnns.BNNSApplyMultiheadAttentionBackward(
                *(filter_, BATCH, x, stride, d_query, x, stride, None, 0, d_key),
                *(x, stride, d_value, None, None, None, None, 0),
                *(projection(d_out[0], grads[3], with_data=True), size.value, cache, None, None),
            )
            for w, g in zip(weights, grads, strict=True):
                w -= np.float32(1.5) * g


if __name__ == "__main__":
    main()
