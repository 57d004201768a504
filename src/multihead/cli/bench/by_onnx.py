"""The layer as an ONNX graph, with ONNX's own attention, in ONNX Runtime; it has no backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from multihead.cli.bench.contenders import Steps
from multihead.cli.bench.problem import Problem

OPSET = 23  # the first with Attention
IR_VERSION = 11


def steps(problem: Problem) -> Steps:
    """Return the session's call."""
    x, _, w_in, b_in, w_out, b_out = problem.numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    session = onnxruntime.InferenceSession(
        _model(problem, (w_in.T, b_in, w_out.T, b_out)), options, ["CPUExecutionProvider"]
    )

    def forward() -> Any:
        return session.run(None, {"x": x})

    def read(found: Any) -> list[Any]:
        return list(found)

    return Steps(forward, None, read)


def _model(problem: Problem, values: tuple[Any, ...]) -> bytes:
    """Return the graph: x (N, L, E) to out (N, L, E)."""
    heads = problem.shape.heads
    names = ("w_in", "b_in", "w_out", "b_out")
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(a), name)
        for name, a in zip(names, values, strict=True)
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["product"]),
        helper.make_node("Add", ["product", "b_in"], ["projected"]),
        helper.make_node("Split", ["projected"], ["q", "k", "v"], axis=-1, num_outputs=3),
        helper.make_node(
            "Attention", ["q", "k", "v"], ["heads"], q_num_heads=heads, kv_num_heads=heads
        ),
        helper.make_node("MatMul", ["heads", "w_out"], ["merged"]),
        helper.make_node("Add", ["merged", "b_out"], ["out"]),
    ]
    sizes = list(problem.shape[:3])
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", "out")
    )
    graph = helper.make_graph(nodes, "layer", [given], [made], constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    serialized: bytes = model.SerializeToString()
    return serialized
