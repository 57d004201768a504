"""What a part of the check found: its largest error, against its tolerance."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Finding:
    """A line of the table.

    Attributes
    ----------
    part : str
    error, tolerance : float or None
        Of the worst comparison by their ratio; None where bits are compared, or nothing was.
    dtype, isa : str
        Where that was.
    comparisons : int
        How many arrays were compared.
    faults : list of str
        What was wrong; empty where all is well.
    late : bool
        Whether there was no time for it.
    """

    part: str
    error: float | None = None
    tolerance: float | None = None
    dtype: str = ""
    isa: str = ""
    comparisons: int = 0
    faults: list[str] = field(default_factory=list)
    late: bool = False

    def add(self, name: str, error: float, tolerance: float, place: tuple[str, str]) -> None:
        """Take in one comparison; `place` is dtype and kernel set.

        Examples
        --------
        >>> found = Finding("layer")
        >>> found.add("out", 3e-7, 2e-6, ("float32", "avx2"))
        >>> found.add("out", 1e-13, 1e-12, ("float64", "avx2"))
        >>> found.error, found.dtype, found.good
        (3e-07, 'float32', True)
        """
        self.comparisons += 1
        share = error / tolerance
        if self.error is None or self.tolerance is None or share > self.error / self.tolerance:
            self.error, self.tolerance = error, tolerance
            self.dtype, self.isa = place
        if not error <= tolerance:
            at = f"{name} in {place[0]} on {place[1]}"
            self.faults.append(f"{at}: error {error:.1e}, tolerance {tolerance:.1e}")

    def same(self, same: bool, what: str) -> None:
        """Take in one comparison of bits."""
        self.comparisons += 1
        if not same:
            self.faults.append(f"{what}: other bits")

    @property
    def good(self) -> bool:
        """Whether all was compared, and nothing was wrong."""
        return self.comparisons > 0 and not self.faults and not self.late

    def document(self) -> dict[str, Any]:
        """Return it, ready for JSON, which has no infinity."""
        found = asdict(self) | {"good": self.good}
        if self.error is not None and not math.isfinite(self.error):
            found["error"] = None
        return found
