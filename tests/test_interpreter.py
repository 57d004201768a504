"""The interpreter around a call: one that ends meanwhile, and others in the same process."""

from __future__ import annotations

import sys

import pytest

from scripts import printed, run

pytestmark = pytest.mark.timeout(120)

# Daemon threads are inside calls when the main thread is done. What dies last takes its time, so
# that calls come back while the interpreter is ending.
ENDS = """
import sys, threading, time
import numpy as np
import multihead as mh
from multihead import functional
mh.set_num_threads(int(sys.argv[1]))
x = np.ones((2, 256, 64), np.float32)
def train():
    layer = mh.MultiheadAttention(64, 4, batch_first=True, seed=0)
    while True:
        layer(x, x, x)
        layer.backward(x)
        inside.release()
def attend():
    q = x.reshape(2, 4, 64, 64)
    while True:
        functional.scaled_dot_product_attention(q, q, q)
        inside.release()
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.2)
sys.last = Slow()
inside = threading.Semaphore(0)
for work in (train, train, attend):
    threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    inside.acquire()
"""
HOW = {"returns": "", "exits": "sys.exit(7)", "raises": "raise SystemExit('as an error')"}


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("how", HOW)
def test_the_process_ends_as_it_should_during_calls(how: str, threads: str) -> None:
    done = run(ENDS + HOW[how], threads)
    expected = {"returns": (0, ""), "exits": (7, ""), "raises": (1, "as an error\n")}
    assert (done.returncode, done.stderr) == expected[how]


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_finalizer_may_call_the_engine_when_the_interpreter_ends(threads: str) -> None:
    code = """
import os, sys
import numpy as np
import multihead as mh
mh.set_num_threads(int(sys.argv[1]))
class Last:
    def __init__(self):
        self.layer, self.x = mh.MultiheadAttention(64, 4, seed=0).eval(), np.ones((90, 64), "f")
    def __del__(self, write=os.write):
        write(1, b"%d, %d" % self.layer(self.x, self.x, self.x, need_weights=False)[0].shape)
last = Last()
"""
    assert printed(code, threads) == "90, 64"


def test_what_a_call_left_may_outlive_the_interpreter() -> None:
    code = """
import sys
import numpy as np
import multihead as mh
layer = mh.MultiheadAttention(16, 2, seed=0)
x = np.ones((4, 16), np.float32)
layer(x, x, x)
sys.kept = layer.cache, mh.KVCache(1, 2, 8, 4)
sys.kept_for_good = [sys.kept]
sys.kept_for_good.append(sys.kept_for_good)
"""
    assert printed(code) == ""


# On 3.13 and later the module has no underscores before it; there a subinterpreter may also have
# its own GIL, and Python refuses the extension before it is asked.
SUBINTERPRETERS = """
import sys
try:
    import _interpreters as subinterpreters
    kinds = ("legacy", "isolated")
except ImportError:
    import _xxsubinterpreters as subinterpreters
    kinds = ("",)
code = '''
import sys
sys.path[:] = PATH
for again in range(2):
    try:
        import multihead
    except ImportError as error:
        assert "subinterpreter" in str(error), error
    else:
        raise AssertionError("not refused")
'''.replace("PATH", repr(sys.path))
def refused():
    for kind in kinds * 2:
        other = subinterpreters.create(*[kind][: bool(kind)])
        failed = subinterpreters.run_string(other, code)
        assert failed is None, failed
        subinterpreters.destroy(other)
"""
COMPUTES = """
import numpy as np
import multihead as mh
def computed():
    layer = mh.MultiheadAttention(16, 2, seed=0)
    x = np.arange(64, dtype=np.float32).reshape(4, 16) / 64
    out, _ = layer(x, x, x)
    return out.tobytes() + layer.backward(out)[0].tobytes()
"""


def test_a_subinterpreter_is_refused() -> None:
    assert printed(SUBINTERPRETERS + "refused(); print('refused')") == "refused\n"


def test_a_subinterpreter_changes_nothing_for_the_main_one() -> None:
    before = "expected = computed(); refused(); print(computed() == expected)"
    assert printed(SUBINTERPRETERS + COMPUTES + before) == "True\n"
    assert printed(SUBINTERPRETERS + "refused()" + COMPUTES + "print(len(computed()))") == "512\n"


def test_the_main_interpreter_s_error_names_the_way_out() -> None:
    code = """
import sys
try:
    import _interpreters as subinterpreters
    other = subinterpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as subinterpreters
    other = subinterpreters.create()
subinterpreters.run_string(other, '''
import sys
sys.path[:] = PATH
try:
    import multihead
except ImportError as error:
    print(error, flush=True)
'''.replace("PATH", repr(sys.path)))
"""
    ours = (
        "multihead runs in a process's main interpreter alone, not in a subinterpreter: "
        "use threads or processes\n"
    )
    python_s = "module multihead._native does not support loading in subinterpreters\n"
    assert printed(code) in (ours, python_s)
    if sys.version_info < (3, 12):  # which asks the extension
        assert printed(code) == ours
