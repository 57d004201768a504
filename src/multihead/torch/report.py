"""What a model's attention is computed by, as lines and as what `accelerate` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """What computes one module's attention.

    Attributes
    ----------
    name : str
        Where the module is; empty for the model itself.
    kind : str
        Its class.
    way : str
        Who computes it, and why.
    """

    name: str
    kind: str
    way: str

    @property
    def on_engine(self) -> bool:
        """Whether the engine computes it."""
        return self.way.startswith("engine")


def lines(rows: Sequence[Row]) -> str:
    """Write rows below each other, in columns."""
    named = [row._replace(name=row.name or "(itself)") for row in rows]
    widths = [max((len(row[i]) for row in named), default=0) for i in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {way}" for a, b, way in named)


class Report(int):
    """How many modules `accelerate` changed; which, what it left, and why.

    A number in every respect, and so are its `repr` and its use in formatted strings; `print` and
    `str` show the report.

    Attributes
    ----------
    changed : tuple of Row
        The modules that this call changed.
    left : tuple of Row
        The modules that attend, and not on the engine.
    functions : tuple of str
        Where the modules are whose calls of PyTorch's functions are redirected, by this call or by
        one before.

    Examples
    --------
    >>> import torch
    >>> from multihead.torch import accelerate
    >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> report = accelerate(model)
    >>> report, report == 1, report.left, report.functions
    (1, True, (), ())
    >>> print(report)
    1 module changed, 0 left
    changed:
    self_attn  MultiheadAttention  engine
    """

    changed: tuple[Row, ...]
    left: tuple[Row, ...]
    functions: tuple[str, ...]

    def __new__(
        cls, changed: Sequence[Row], left: Sequence[Row], functions: Sequence[str]
    ) -> Report:
        """Count what changed."""
        self = super().__new__(cls, len(changed))
        self.changed, self.left = tuple(changed), tuple(left)
        self.functions = tuple(functions)
        return self

    def __getnewargs__(self) -> Any:
        return self.changed, self.left, self.functions

    def __format__(self, spec: str) -> str:
        return format(int(self), spec)

    def __str__(self) -> str:
        parts = [f"{self!r} module{'s' * (self != 1)} changed, {len(self.left)} left"]
        for title, rows in (("changed", self.changed), ("left", self.left)):
            if rows:
                parts += [f"{title}:", lines(rows)]
        return "\n".join(parts)
