"""Importing the package is quick and brings in no framework."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "transformers", "jax", "tensorflow", "cupy", "mlx", "scipy")
FRAMEWORKS += ("matplotlib", "rich", "sklearn", "mpi4py", "multihead.distributed")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.timeout(120)
def test_no_framework_is_imported() -> None:
    code = f"import sys, multihead; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.timeout(240)
def test_import_takes_little_beyond_numpy() -> None:
    code = """
import time, numpy
start = time.perf_counter()
import multihead
print(time.perf_counter() - start)
"""
    run(code)
    assert statistics.median(float(run(code)) for _ in range(7)) < 0.15


@pytest.mark.timeout(60)
def test_public_names_are_there() -> None:
    import multihead as mh

    assert all(hasattr(mh, name) for name in mh.__all__)
    names = {"MultiheadAttention", "Ragged", "functional", "set_num_threads", "get_num_threads"}
    assert (names | {"show_config"}) <= set(mh.__all__) | {"functional"}
    assert hasattr(mh.functional, "scaled_dot_product_attention")


@pytest.mark.timeout(60)
def test_faces_are_imported_where_they_are_named() -> None:
    code = """
import sys, multihead as mh
print([x for x in dir(mh) if not x.startswith("_") and x not in mh.__all__])
print("multihead.bnns" in sys.modules, mh.bnns.__name__)
sys.modules["torch"] = None  # as if there were none
print(hasattr(mh, "torch"))
"""
    assert run(code).splitlines() == [
        "['bnns', 'distributed', 'jax', 'maps', 'plot', 'torch']",
        "False multihead.bnns",
        "False",
    ]


@pytest.mark.timeout(240)
def test_importing_the_torch_face_takes_little_beyond_torch() -> None:
    code = """
import sys, time, numpy, torch, multihead
start = time.process_time()  # others may keep the processors busy
import multihead.torch
seconds = time.process_time() - start
heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "transformers")
print([name for name in heavy if name in sys.modules], seconds)
"""
    seconds = []
    for _ in range(3):
        heavy, found = run(code).rsplit(" ", 1)
        assert heavy == "[]"
        seconds.append(float(found))
    assert min(seconds) < 0.2
