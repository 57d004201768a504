"""Targets of the C face: what it costs beside the NumPy layer on the same work."""

from __future__ import annotations

from ctypes import c_size_t
from typing import Any

import numpy as np

from benchmarks.cases import SHAPES, Case, Mode, Shape
from benchmarks.problem import Problem
from benchmarks.targets.target import Reached, Run, Target
from multihead import bnns


class BnnsStep:
    """A case through the BNNS API: the layer's own weights, read where they lie.

    Parameters
    ----------
    case : Case
        Plain inference or training.
    """

    def __init__(self, case: Case) -> None:
        problem, shape = Problem.of(case), case.shape
        self.training, self.batch = case.mode.training, shape.batch
        self.x, self.d_out = problem.x, problem.d_out
        self.out, self.d_x = np.empty_like(self.x), np.empty_like(self.x)
        self.stride = shape.length * shape.embed_dim
        self.parameters = problem.parameters
        self.grads = {name: np.zeros_like(a) for name, a in self.parameters.items()}
        self.shape = shape
        layer = bnns.LayerParametersMultiheadAttention(**self._projections(self.parameters))
        options = bnns.FilterParameters(flags=bnns.FilterFlags.UseClientPtr)
        self.filter = bnns.Filter(layer, options)
        self.size = c_size_t()
        self._forward(self.size, None)
        self.cache = np.empty(self.size.value, np.uint8)
        # the gradient of the one input, three times: the three are added up
        self.deltas = self._projections(self.grads, self.d_x, self.d_out)

    def _projections(
        self,
        parameters: dict[str, Any],
        target: Any = None,
        d_out: Any = None,
    ) -> dict[str, bnns.MHAProjectionParameters]:
        heads, dim, embed_dim = self.shape.num_heads, self.shape.head_dim, self.shape.embed_dim
        layouts, describe = bnns.DataLayout, bnns.NDArrayDescriptor.from_array
        weights = np.split(parameters["in_proj_weight"], 3)
        biases = np.split(parameters["in_proj_bias"], 3)

        def target_of(array: Any) -> bnns.NDArrayDescriptor:
            given = array is not None
            d = describe((array if given else self.x)[0], data=given)
            d.stride[2] = self.stride
            return d

        made = {
            name: bnns.MHAProjectionParameters(
                target_desc=target_of(target),
                weights=describe(
                    w.reshape(heads, dim, embed_dim).transpose(2, 1, 0), layouts.ThreeDLastMajor
                ),
                bias=describe(b.reshape(heads, dim).T, layouts.TwoDLastMajor),
            )
            for name, w, b in zip(("query", "key", "value"), weights, biases, strict=True)
        }
        made["output"] = bnns.MHAProjectionParameters(
            target_desc=target_of(d_out),
            weights=describe(parameters["out_proj.weight"].T, layouts.TwoDLastMajor),
            bias=describe(parameters["out_proj.bias"]),
        )
        return made

    def _forward(self, size: c_size_t | None, cache: Any) -> None:
        x, stride = self.x, self.stride
        bnns.BNNSApplyMultiheadAttention(
            *(self.filter, self.batch, x, stride, x, stride, None, 0, x, stride),
            *(self.out, stride, None, size, cache, None, None),
        )

    def __call__(self) -> None:
        """Run forward, and backward in training."""
        if not self.training:
            return self._forward(None, None)
        self._forward(self.size, self.cache)
        x, stride, d = self.x, self.stride, self.deltas
        bnns.BNNSApplyMultiheadAttentionBackward(
            *(self.filter, self.batch, x, stride, d["query"], x, stride, None, 0, d["key"]),
            *(x, stride, d["value"], None, None, None, None, 0, d["output"]),
            *(self.size.value, self.cache, None, None),
        )
        return None


def _beside_numpy(shape: Shape, training: bool) -> Target:
    word = "train" if training else "infer"
    case = Case(shape, Mode(word, training=training))

    def measure(run: Run) -> Reached:
        return Reached(run.ratio(BnnsStep(case), run.step(case)))

    return Target(
        f"bnns-{word}-{shape.length}",
        f"{word} at {shape} through the BNNS API: time / time of the NumPy layer",
        1.05,
        measure,
        at_most=True,
        quick=shape.length <= 128,
    )


TARGETS = tuple(
    _beside_numpy(shape, training)
    for shape in (SHAPES[6], SHAPES[0], SHAPES[2])
    for training in (False, True)
)
