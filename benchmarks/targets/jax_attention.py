"""Targets of the JAX face: attention beside JAX's own and the NumPy face, and what a call costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from statistics import median

from benchmarks.measure import Timing
from benchmarks.targets.target import Reached, Run, Target, paired

LENGTHS = {128: 8, 512: 8, 2048: 8, 8192: 2}  # and heads
NO_SLOWER, FASTER, LONG = 1.0, 2.0, 512
NUMPY_LENGTH = 2048
CALLS = 100


def with_jax(measure: Callable[[Run], Reached]) -> Callable[[Run], Reached]:
    """Make what measures a target say so where JAX is not installed, or ours not built for it."""

    @wraps(measure)
    def measured(run: Run) -> Reached:
        if find_spec("jax") is None:
            return Reached(None, "jax is not installed")
        try:
            import multihead.jax  # noqa: F401
        except ImportError as error:
            return Reached(None, str(error))
        return measure(run)

    return measured


def raced(run: Run, length: int, training: bool) -> dict[str, list[float]]:
    """Race the three at a length."""
    from benchmarks.jax_calls import contenders

    return run.race(contenders(length, LENGTHS[length], training))


def told(seconds: dict[str, list[float]]) -> str:
    """Say the times."""
    # the report imports the targets
    from benchmarks.report import duration

    return ", ".join(f"{name} {duration(median(times))}" for name, times in seconds.items())


def _ratio(length: int, training: bool) -> Target:
    @with_jax
    def measure(run: Run) -> Reached:
        from benchmarks.jax_calls import JAX, OURS

        seconds = raced(run, length, training)
        timings = {name: Timing(tuple(times)) for name, times in seconds.items()}
        ratio = median(paired(seconds[JAX], seconds[OURS]))
        return Reached(ratio, told(seconds), seconds=timings)

    word = "train" if training else "infer"
    return Target(
        f"jax-{word}-{length}",
        f"attention under jit, L = {length}, H = {LENGTHS[length]}, D = 64, {word}: JAX / ours",
        FASTER if length >= LONG else NO_SLOWER,
        measure,
        quick=length <= LONG,
    )


@with_jax
def _beside_numpy(run: Run) -> Reached:
    from benchmarks.jax_calls import NUMPY, OURS

    found = [raced(run, NUMPY_LENGTH, training) for training in (False, True)]
    ratios = [median(paired(seconds[OURS], seconds[NUMPY])) for seconds in found]
    return Reached(max(ratios), "infer {:.3f}x, train {:.3f}x".format(*ratios))


@with_jax
def _overhead(run: Run) -> Reached:
    import jax

    from benchmarks.jax_calls import Jitted, normal, register
    from multihead.jax import dot_product_attention

    arrays = [normal(seed, 1, 2, 2, 4) for seed in range(3)]
    of_out = jax.ShapeDtypeStruct((1, 2, 2, 4), "float32")
    nothing = jax.ffi.ffi_call(register("empty_call"), of_out)
    steps = {"ours": dot_product_attention, "an empty call": nothing}

    def often(step: Jitted) -> Callable[[], None]:
        def calls() -> None:
            for _ in range(CALLS):
                step()

        return calls

    found = run.race({name: often(Jitted(step, *arrays)) for name, step in steps.items()})
    rounds = zip(*found.values(), strict=True)
    more = median(ours - empty for ours, empty in rounds)
    ours, empty = (1e6 * median(times) / CALLS for times in found.values())
    return Reached(1e6 * more / CALLS, f"ours {ours:.1f} us, an empty call {empty:.1f} us")


TARGETS = (
    *(_ratio(length, training) for length in LENGTHS for training in (False, True)),
    Target(
        "jax-numpy",
        f"the same, L = {NUMPY_LENGTH}, infer and train: ours / NumPy's face",
        1.05,
        _beside_numpy,
        at_most=True,
        form="{:.3f}x",
    ),
    Target(
        "jax-overhead",
        "a call under jit with next to nothing to compute - an empty call of XLA",
        20.0,
        _overhead,
        at_most=True,
        form="{:.1f} us",
        quick=True,
    ),
)
