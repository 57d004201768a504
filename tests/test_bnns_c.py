"""The C face from C: header, linking, a program against Apple's declarations, the example."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from ctypes import c_size_t
from pathlib import Path

import numpy as np
import pytest

import multihead as mh
from apple_library import FUNCTIONS
from multihead import bnns
from multihead.bnns.library import LIBRARY

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "tests" / "native"
# where Apple's names are Accelerate's, the program asks for ours by its own
OURS = [f"-D{name}=multihead_{name}" for name in FUNCTIONS if sys.platform == "darwin"]
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")


def run(*command: str | Path, timeout: float = 120, cwd: Path | None = None) -> str:
    """Run a command and return what it prints; fail with what it says."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flags(*options: str) -> list[str]:
    """What the installed package tells compilers."""
    return run(sys.executable, "-m", "multihead", "config", *options).split()


@pytest.mark.parametrize(
    "language", [("cc", "-std=c99"), ("cc", "-std=c11"), ("c++", "-std=c++17", "-x", "c++")]
)
def test_the_header_compiles_and_has_apple_s_sizes(language: tuple[str, ...]) -> None:
    run(*language, *STRICT, *flags("--cflags"), "-c", NATIVE / "bnns_sizes.c", "-o", "/dev/null")


def test_python_s_structs_have_the_same_sizes() -> None:
    text = (NATIVE / "bnns_sizes.c").read_text()
    structs = {
        "BNNSNDArrayDescriptor": bnns.NDArrayDescriptor,
        "BNNSMHAProjectionParameters": bnns.MHAProjectionParameters,
        "BNNSLayerParametersMultiheadAttention": bnns.LayerParametersMultiheadAttention,
        "BNNSFilterParameters": bnns.FilterParameters,
    }
    sizes = re.findall(r"sizeof\((\w+)\) == (\d+)", text)
    offsets = re.findall(r"AT\(\w+, (\w+), (\w+), (\d+)\)", text)
    assert {name for name, _ in sizes} == set(structs)
    for name, size in sizes:
        assert ctypes.sizeof(structs[name]) == int(size)
    for name, field, offset in offsets:
        assert getattr(structs[name], field).offset == int(offset), (name, field)
    assert len(offsets) == sum(len(struct._fields_) for struct in structs.values())


def test_a_program_against_apple_s_declarations(tmp_path: Path) -> None:
    program = tmp_path / "program"
    posix = "-D_POSIX_C_SOURCE=200112L"
    source = NATIVE / "bnns_program.c"
    run(
        "cc",
        "-std=c99",
        posix,
        *OURS,
        *STRICT,
        source,
        *flags("--libs"),
        "-lm",
        "-lpthread",
        "-o",
        program,
    )
    assert run(program).splitlines()[-1] == "passed"


def test_c_and_python_share_one_engine() -> None:
    before = mh.get_num_threads()
    try:
        mh.set_num_threads(3)
        assert LIBRARY.multihead_get_num_threads() == 3
        LIBRARY.multihead_set_num_threads(2)
        assert mh.get_num_threads() == 2
    finally:
        mh.set_num_threads(before)


def losses(printed: str) -> list[float]:
    return [float(line.split()[-1]) for line in printed.splitlines()]


def test_the_examples_train(tmp_path: Path) -> None:
    program = tmp_path / "train"
    source = ROOT / "examples" / "bnns_train.c"
    run("cc", *STRICT, source, *flags("--cflags", "--libs"), "-lm", "-o", program)
    for printed in (run(program), run(sys.executable, ROOT / "examples" / "bnns_train.py")):
        falling = losses(printed)
        assert len(falling) == 6
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] < 0.05 * falling[0]


def test_pkg_config_finds_it(tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        text = (Path(mh.__file__).parent / "pkgconfig" / "multihead.pc").read_text()
        assert "-lmultihead" in text
        assert "-I${includedir}" in text
        return
    folder = Path(mh.__file__).parent / "pkgconfig"
    found = run("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--cflags", "--libs", "multihead")
    source, program = NATIVE / "bnns_program.c", tmp_path / "program"
    posix = "-D_POSIX_C_SOURCE=200112L"
    run("cc", posix, *OURS, source, *found.split(), "-lm", "-lpthread", "-o", program)
    assert run(program).splitlines()[-1] == "passed"


def test_cmake_finds_it(tmp_path: Path) -> None:
    cmake = shutil.which("cmake") or str(Path(sys.executable).parent / "cmake")
    package = Path(mh.__file__).parent
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(train LANGUAGES C)\n"
        "find_package(multihead 0.1 REQUIRED)\n"
        f"add_executable(train {ROOT}/examples/bnns_train.c)\n"
        "target_link_libraries(train PRIVATE multihead::multihead m)\n"
    )
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-Dmultihead_DIR={package}/cmake")
    run(cmake, "--build", tmp_path / "build")
    assert len(losses(run(tmp_path / "build" / "train"))) == 6


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_layer_has_the_same_bits_through_numpy(
    dropout: float, rng: np.random.Generator
) -> None:
    n, length, embed, heads, seed = 3, 70, 48, 3, 99
    layer = mh.MultiheadAttention(embed, heads, dropout=dropout, batch_first=True, seed=0)
    layer.rng_state = (seed, 0)
    for name, array in layer.parameters().items():
        if "bias" in name:
            array[...] = rng.standard_normal(array.shape, dtype=np.float32)
    x, memory, d_out = (rng.standard_normal((n, length, embed), dtype=np.float32) for _ in "123")
    hidden = rng.random((n, length)) < 0.3
    expected, _ = layer(x, memory, memory, hidden, need_weights=False)
    d_expected = layer.backward(d_out)

    d = bnns.NDArrayDescriptor.from_array
    last_major = bnns.DataLayout.ThreeDLastMajor
    dim = embed // heads

    def projection(w: np.ndarray, b: np.ndarray, target: np.ndarray | None = None) -> object:
        p = bnns.MHAProjectionParameters(
            target_desc=d(x[0] if target is None else target, data=target is not None),
            # torch's block (H D, in) is 3DLastMajor {in, D, H}
            weights=d(w.reshape(heads, dim, embed).transpose(2, 1, 0), last_major),
            bias=d(b.reshape(heads, dim).T, bnns.DataLayout.TwoDLastMajor),
        )
        p.target_desc.stride[2] = length * embed
        return p

    def output(w: np.ndarray, b: np.ndarray, target: np.ndarray | None = None) -> object:
        p = bnns.MHAProjectionParameters(
            target_desc=d(x[0] if target is None else target, data=target is not None),
            weights=d(w.T, bnns.DataLayout.TwoDLastMajor),
            bias=d(b),
        )
        p.target_desc.stride[2] = length * embed
        return p

    def blocks(params: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(
            zip(
                np.split(params["in_proj_weight"], 3),
                np.split(params["in_proj_bias"], 3),
                strict=True,
            )
        )

    params = layer.parameters()
    q, k, v = (projection(w, b) for w, b in blocks(params))
    made = bnns.LayerParametersMultiheadAttention(
        query=q,
        key=k,
        value=v,
        output=output(params["out_proj.weight"], params["out_proj.bias"]),
        dropout=dropout,
        seed=seed,
    )
    out, stride = np.empty_like(x), length * embed
    mask = d(hidden[0])
    size = c_size_t()
    grads = {name: np.zeros_like(array) for name, array in params.items()}
    d_x, d_k, d_v = (np.empty_like(x) for _ in "qkv")
    with bnns.Filter(made) as filter_:
        inputs = (x, stride, memory, stride, mask, length, memory, stride, out, stride, None)
        bnns.BNNSApplyMultiheadAttention(filter_, n, *inputs, size, None, None, None)
        cache = np.empty(size.value, np.uint8)
        bnns.BNNSApplyMultiheadAttention(filter_, n, *inputs, size, cache, None, None)
        dq, dk, dv = (
            projection(w, b, target[0])
            for (w, b), target in zip(blocks(grads), (d_x, d_k, d_v), strict=True)
        )
        bnns.BNNSApplyMultiheadAttentionBackward(
            *(filter_, n, x, stride, dq, memory, stride, mask, length, dk, memory, stride, dv),
            *(None, None, None, None, 0),
            output(grads["out_proj.weight"], grads["out_proj.bias"], d_out[0]),
            *(size.value, cache, None, None),
        )
    assert out.tobytes() == expected.tobytes()
    for ours, theirs in zip((d_x, d_k, d_v), d_expected, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for name, array in layer.grads.items():
        assert grads[name].tobytes() == array.tobytes(), name
