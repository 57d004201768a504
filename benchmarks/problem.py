"""The arrays of one case, made once and given to every contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case

Array = npt.NDArray[Any]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name, bfloat16 too.

    Raises
    ------
    ModuleNotFoundError
        For bfloat16 without ml_dtypes.
    """
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


@dataclass(frozen=True)
class Problem:
    """Inputs and parameters of a case, all of one dtype.

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
    def of(cls, case: Case, seed: int = 0, dtype: str = "float32") -> Problem:
        """Draw the arrays of a case; bfloat16 is that of ml_dtypes.

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
        stored = numpy_dtype(dtype)

        def normal(*size: int, scale: float = 1.0) -> Array:
            drawn = scale * rng.standard_normal(size, dtype=np.float32)
            return drawn.astype(stored, copy=False)

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

    @property
    def dtype(self) -> str:
        """The name of the dtype of all arrays."""
        return str(self.x.dtype.name)
