"""The PyTorch that this face needs, checked before anything else of it is imported."""

from __future__ import annotations

try:
    import torch
except ModuleNotFoundError as why:
    if why.name != "torch":
        raise
    raise ModuleNotFoundError(
        'multihead.torch needs PyTorch: pip install "multihead[torch]"', name="torch"
    ) from None

# what compares sizes in sizes.py, and torch.library, are not in older ones
OLDEST = "2.8"

if torch.__version__ < OLDEST:
    raise ImportError(
        f"multihead.torch needs PyTorch {OLDEST} or later, got {torch.__version__}: "
        "pip install --upgrade torch"
    )
