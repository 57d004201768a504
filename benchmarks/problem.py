"""The arrays of one case, made once and given to every contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """Inputs and parameters of a case, float32.

    Attributes
    ----------
    x : numpy.ndarray
        ``(N, L, E)``, query, key and value in one.
    d_out : numpy.ndarray
        ``(N, L, E)``, the gradient of the output.
    key_padding_mask : numpy.ndarray or None
        ``(N, L)`` bool, True at the keys to ignore.
    parameters : dict of str to numpy.ndarray
        The state dict of the layer.
    """

    case: Case
    x: Array
    d_out: Array
    key_padding_mask: Array | None
    parameters: dict[str, Array]

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Problem:
        """Draw the arrays of a case.

        Examples
        --------
        >>> from benchmarks.cases import GRID
        >>> problem = Problem.of(GRID[0])
        >>> problem.x.shape, problem.x.dtype.name, problem.key_padding_mask
        ((1, 128, 256), 'float32', None)
        """
        rng = np.random.default_rng(seed)
        shape = case.shape
        embed_dim = shape.embed_dim

        def normal(*size: int, scale: float = 1.0) -> Array:
            return scale * rng.standard_normal(size, dtype=np.float32)

        hidden = None
        if case.mode.padding:
            hidden = np.arange(shape.length) >= case.lengths()[:, None]
        return cls(
            case=case,
            x=normal(shape.batch, shape.length, embed_dim),
            d_out=normal(shape.batch, shape.length, embed_dim),
            key_padding_mask=hidden,
            parameters={
                "in_proj_weight": normal(3 * embed_dim, embed_dim, scale=embed_dim**-0.5),
                "in_proj_bias": normal(3 * embed_dim, scale=0.1),
                "out_proj.weight": normal(embed_dim, embed_dim, scale=embed_dim**-0.5),
                "out_proj.bias": normal(embed_dim, scale=0.1),
            },
        )
