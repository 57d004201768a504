"""Attention maps to look through in a browser: of a text by an encoder, or of any weights.

The page needs NumPy alone; reading a model needs ``pip install "multihead[maps]"``.
"""

from __future__ import annotations

from multihead.maps.encoder import BertEncoder
from multihead.maps.page import page

__all__ = ["BertEncoder", "page"]
