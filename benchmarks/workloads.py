"""The models that the torch face is measured in: the one list of them, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """A model at one size; `benchmarks.models` builds it.

    Attributes
    ----------
    model : str
        ``"encoder"`` (its batch padded), ``"transformer"`` (its target causal) or ``"vit"``.
    batch, length : int
        Sequences and their tokens; of the vit, images and their patches plus one.
    embed_dim, num_heads, hidden, layers : int
        Of every layer; a transformer has so many layers in encoder and decoder each.
    dropout : float
        Between the layers' parts and in attention.
    activation : str
        ``"relu"``, PyTorch's default, or ``"gelu"``.
    """

    model: str
    batch: int
    length: int
    embed_dim: int
    num_heads: int
    hidden: int
    layers: int
    dropout: float = 0.1
    activation: str = "relu"

    def exact(self) -> Workload:
        """Return the same where gradients can be compared: without dropout, and smooth.

        A rounding error that turns a relu on or off makes gradients jump, PyTorch's too.
        """
        return replace(self, dropout=0.0, activation="gelu")

    def __str__(self) -> str:
        return (
            f"{self.model} of {self.layers} layers at ({self.batch}, {self.length}, "
            f"{self.embed_dim}, {self.num_heads})"
        )


def _encoder(batch: int, length: int) -> Workload:
    return Workload("encoder", batch, length, 384, 12, 1536, 6)


def _transformer(batch: int, length: int) -> Workload:
    return Workload("transformer", batch, length, 512, 8, 2048, 3)


def _vit(batch: int) -> Workload:
    return Workload("vit", batch, 197, 768, 12, 3072, 4, activation="gelu")


WORKLOADS = (
    _encoder(16, 128),
    _encoder(4, 512),
    _encoder(2, 1024),
    _transformer(8, 128),
    _transformer(2, 512),
    _vit(4),
)

# one of each model, for results instead of times
SMALL = tuple(replace(work, layers=2) for work in (_encoder(2, 128), _transformer(2, 64), _vit(1)))
