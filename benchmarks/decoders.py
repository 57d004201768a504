"""Others that attend from one new token to cached keys, each given the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.problem import Array

Decoder = Callable[[], Any]


def decoders(
    q: Array, k: Array, v: Array, threads: int
) -> tuple[dict[str, Decoder], dict[str, str]]:
    """Return who is installed, and why others are absent.

    Parameters
    ----------
    q, k, v : ndarray (N, H, 1, D), (N, Hk, S, D), (N, Hk, S, D)
    threads : int

    Returns
    -------
    found : dict of str to callable
        Each returns its output.
    absent : dict of str to str
    """
    makers = {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}
    found: dict[str, Decoder] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        needed = (name, "onnx") if name == "onnxruntime" else (name,)
        if any(find_spec(each) is None for each in needed):
            absent[name] = "is not installed"
            continue
        try:
            found[name] = make(q, k, v, threads)
        except Exception as error:  # whatever a library raises, the others still race
            absent[name] = f"refuses: {str(error).splitlines()[0][:80]}"
    return found, absent


def _torch(q: Array, k: Array, v: Array, threads: int) -> Decoder:
    import torch

    tensors = [torch.from_numpy(x) for x in (q, k, np.ascontiguousarray(v))]
    attend: Any = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        with torch.inference_mode():
            return attend(*tensors, enable_gqa=True).numpy()

    return run


def _onnxruntime(q: Array, k: Array, v: Array, threads: int) -> Decoder:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    names = ("q", "k", "v")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
        for name, x in zip(names, (q, k, v), strict=True)
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, q.shape)
    graph = helper.make_graph(
        [helper.make_node("Attention", names, ["out"])], "decode", inputs, [out]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, x in zip(names, (q, k, np.ascontiguousarray(v)), strict=True):
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("out")

    def run() -> Any:
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    run()
    return run


def _openvino(q: Array, k: Array, v: Array, threads: int) -> Decoder:
    import openvino
    from openvino import opset13

    group = q.shape[1] // k.shape[1]
    given = [opset13.parameter(list(x.shape), np.float32) for x in (q, k, v)]
    node_q = given[0]
    if group > 1:  # the queries of a group as those of one head, as its own graphs have it
        shape = [q.shape[0], k.shape[1], group, q.shape[3]]
        node_q = opset13.reshape(node_q, np.array(shape, np.int64), False)
    attended = opset13.scaled_dot_product_attention(node_q, given[1], given[2])
    out = opset13.reshape(attended, np.array(q.shape, np.int64), False)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Model([out], given, "decode")
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    for i, x in enumerate((q, k, np.ascontiguousarray(v))):
        request.set_input_tensor(i, openvino.Tensor(x, shared_memory=True))

    def run() -> Any:
        request.infer()
        return np.array(request.get_output_tensor().data)

    return run
