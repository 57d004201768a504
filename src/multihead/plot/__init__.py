"""Pictures of attention. Needs matplotlib: ``pip install "multihead[plot]"``.

Colour says how many times its even share 1/S a weight is: what gets no more than that has none, so
a head that looks everywhere alike is blank, and a head that picks stands out.
"""

from __future__ import annotations

from multihead.plot.figures import save
from multihead.plot.images import attention_maps
from multihead.plot.maps import attention_map, head_grid

__all__ = ["attention_map", "attention_maps", "head_grid", "save"]
