"""Exported programs of JAX that call the engine by its documented names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import printed

jax = pytest.importorskip("jax")

from jax import export  # noqa: E402

from jax_calls import drawn  # noqa: E402
from multihead.jax import dot_product_attention  # noqa: E402

TARGETS = ("multihead_attention_forward", "multihead_attention_backward")
READ = """
import sys
import numpy as np
import multihead.jax
from jax import export

with open(sys.argv[1], "rb") as file:
    exported = export.deserialize(bytearray(file.read()))
given = np.load(sys.argv[2])
results = exported.call(given["query"], given["key"], given["value"])
np.savez(sys.argv[3], *results)
"""


def loss(query: Any, key: Any, value: Any) -> Any:
    return (dot_product_attention(query, key, value, is_causal=True) ** 2).sum()


def test_another_process_runs_what_was_exported(tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers")
    inputs = drawn(np.random.default_rng(81), (2, 19, 33, 4, 2, 8, 6))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
    exported = export.export(gradients, disabled_checks=checks)(*inputs)
    assert all(name in exported.mlir_module() for name in TARGETS)
    program, given, results = (tmp_path / name for name in ("program", "given.npz", "out.npz"))
    program.write_bytes(exported.serialize())
    np.savez(given, **dict(zip(("query", "key", "value"), inputs, strict=True)))
    printed(READ, str(program), str(given), str(results))
    found = np.load(results)
    for i, expected in enumerate(gradients(*inputs)):
        np.testing.assert_array_equal(found[f"arr_{i}"], expected)


def test_the_names_have_to_be_allowed() -> None:
    inputs = drawn(np.random.default_rng(82), (2, 19, 33, 4, 2, 8, 6))
    with pytest.raises(ValueError, match="multihead_attention_forward"):
        export.export(jax.jit(loss))(*inputs)
