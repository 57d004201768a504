"""Frequencies of rotary positions, scaled for longer texts in the ways that models name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from multihead.checks import number, wrong, wrong_type

Frequencies: TypeAlias = NDArray[np.float32]
_ONE = np.float32(1)


class Turns(NamedTuple):
    """What a position turns features by: an angle a step for each pair, and a factor."""

    frequencies: Frequencies
    factor: float = 1.0


def _plain(base: float, dims: int) -> Frequencies:
    """Su et al. (2021): ``base ** (-2 i / dims)`` for pair i, in float32 as models have it."""
    exponents = np.arange(0, dims, 2).astype(np.float32) / np.float32(dims)
    frequencies: Frequencies = _ONE / np.float32(base) ** exponents
    return frequencies


def _linear(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    return Turns(_plain(base, dims) / np.float32(_needed(scaling, "factor")))


def _default(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    return Turns(_plain(base, dims))


def _dynamic(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    """Let the base grow with a text that is longer than those of training."""
    factor, trained = _needed(scaling, "factor"), _trained(scaling)
    if dims < 4:
        raise wrong("rope", "at least 4 features to turn for rope_type 'dynamic'", dims)
    grown = factor * max(length, trained) / trained - (factor - 1)
    return Turns(_plain(base * grown ** (dims / (dims - 2)), dims))


def _yarn(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    """Peng et al. (2023): slow pairs are stretched, fast ones are not, a ramp lies between."""
    factor, trained = _needed(scaling, "factor"), _trained(scaling)

    def pair_of(rotations: float) -> float:  # which turns so often within the trained length
        wavelength = trained / (rotations * 2 * math.pi)
        return dims * math.log(wavelength) / (2 * math.log(base))

    low = pair_of(scaling.get("beta_fast") or 32)
    high = pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    high += 0.001 if low == high else 0.0
    steps = (np.arange(dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = _ONE - np.clip(steps, 0, 1)
    wavelengths = np.float32(base) ** (np.arange(0, dims, 2).astype(np.float32) / np.float32(dims))
    stretched = _ONE / (np.float32(factor) * wavelengths)
    frequencies = stretched * (_ONE - kept) + _ONE / wavelengths * kept
    return Turns(frequencies, _yarn_factor(factor, scaling))


def _yarn_factor(factor: float, scaling: Mapping[str, Any]) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above, below = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return growth(above) / growth(below) if above and below else growth(1.0)


def _llama3(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    """Llama 3.1: as `_yarn` by wavelengths, the ramp between two parts of the trained length."""
    factor, trained = np.float32(_needed(scaling, "factor")), _trained(scaling)
    low = np.float32(_needed(scaling, "low_freq_factor"))
    high = np.float32(_needed(scaling, "high_freq_factor"))
    plain = _plain(base, dims)
    wavelengths = np.float32(2 * math.pi) / plain
    slow, fast = wavelengths > trained / low, wavelengths < trained / high
    kept = (np.float32(trained) / wavelengths - low) / (high - low)
    between = (_ONE - kept) * (plain / factor) + kept * plain
    return Turns(np.where(slow, plain / factor, np.where(fast, plain, between)))


def _longrope(base: float, dims: int, length: int, scaling: Mapping[str, Any]) -> Turns:
    """Ding et al. (2024): a factor for each pair, one set within the trained length, one beyond."""
    trained = _trained(scaling)
    name = "long_factor" if length > trained else "short_factor"
    factors = np.asarray(_needed(scaling, name), np.float32)
    if factors.shape != (dims // 2,):
        raise wrong(f"scaling[{name!r}]", f"{dims // 2} numbers", f"{factors.size}")
    given, factor = scaling.get("attention_factor"), scaling.get("factor")
    if factor is None:
        factor = scaling.get("max_position_embeddings", trained) / trained
    if given is None:
        given = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    exponents = np.arange(0, dims, 2).astype(np.float32) / np.float32(dims)
    return Turns(_ONE / (factors * np.float32(base) ** exponents), float(given))


_KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def kind_of(scaling: Mapping[str, Any] | None) -> str:
    """Return the name of a scaling, or raise."""
    if scaling is None:
        return "default"
    if not isinstance(scaling, Mapping):
        raise wrong_type("scaling", "a mapping with a rope_type", type(scaling).__name__)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KINDS:
        raise wrong("scaling['rope_type']", " or ".join(map(repr, _KINDS)), repr(kind))
    return kind


def turns(base: float, dims: int, length: int, scaling: Mapping[str, Any] | None) -> Turns:
    """Return the angles of one step for a text of so many positions, or raise."""
    given = scaling or {}
    try:
        with np.errstate(all="ignore"):
            found = _KINDS[kind_of(scaling)](base, dims, length, given)
        if np.isfinite(found.frequencies).all() and math.isfinite(found.factor):
            return found
    except ArithmeticError:
        pass
    raise wrong("scaling", "numbers from which finite angles follow", f"{dict(given)}, base {base}")


def regime(length: int, scaling: Mapping[str, Any] | None) -> int:
    """Return a number that is the same for lengths with the same angles."""
    kind = kind_of(scaling)
    if scaling is None or kind not in ("dynamic", "longrope"):
        return 0
    trained = _trained(scaling)
    return 0 if length <= trained else length if kind == "dynamic" else 1


def _needed(scaling: Mapping[str, Any], name: str) -> Any:
    value = scaling.get(name)
    if value is None:
        kind = kind_of(scaling)
        raise wrong("scaling", f"{name!r} in a scaling of rope_type {kind!r}", sorted(scaling))
    if name.endswith("_factor") and not np.isscalar(value):
        return value
    return _positive(name, value)


def _positive(name: str, value: Any) -> float:
    found = number(name, value)
    if not found > 0:
        raise wrong(name, "a number above 0", value)
    return found


def _trained(scaling: Mapping[str, Any]) -> float:
    """Return the length that a model was trained with."""
    for name in ("original_max_position_embeddings", "max_position_embeddings"):
        if scaling.get(name) is not None:
            return _positive(name, scaling[name])
    return float(_needed(scaling, "original_max_position_embeddings"))
