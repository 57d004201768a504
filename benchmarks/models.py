"""Whole models of PyTorch's own modules, their batches and their losses. Imports PyTorch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from benchmarks.cases import Case, Mode, Shape
from benchmarks.workloads import Workload

PATCH = 16
CLASSES = 10
SMOOTHING = 0.1


class Batch(NamedTuple):
    """What one call of a model takes, and what it should return.

    Attributes
    ----------
    inputs : tuple of Tensor
        The arguments of the model's `forward`.
    wanted : Tensor
        Shaped like the output, or the class of each image.
    real : Tensor or None
        (N, L) bool, False at padding; None: all is real.
    """

    inputs: tuple[Any, ...]
    wanted: Any
    real: Any = None

    def loss(self, out: Any) -> Any:
        """Return smoothed cross-entropy of classes; else the mean square where all is real."""
        if self.wanted.dtype == torch.int64:
            return torch.nn.functional.cross_entropy(out, self.wanted, label_smoothing=SMOOTHING)
        squares = (out - self.wanted).square().mean(-1)
        return squares.mean() if self.real is None else squares[self.real].mean()


class Encoder(torch.nn.Module):
    """`torch.nn.TransformerEncoder` on a padded batch."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        layer = torch.nn.TransformerEncoderLayer(
            work.embed_dim,
            work.num_heads,
            work.hidden,
            work.dropout,
            work.activation,
            batch_first=True,
        )
        self.encoder = torch.nn.TransformerEncoder(layer, work.layers)

    def forward(self, x: Any, hidden: Any) -> Any:
        """Return (N, L, E) for (N, L, E) and an (N, L) bool mask of the padding."""
        return self.encoder(x, src_key_padding_mask=hidden)

    def draw(self) -> Batch:
        """Draw a batch; lengths are those of the grid's padded cases."""
        work = self.work
        shape = Shape(work.batch, work.length, work.embed_dim, work.num_heads)
        lengths = torch.from_numpy(Case(shape, Mode("", padding=True)).lengths())
        real = torch.arange(work.length) < lengths[:, None]
        x, wanted = torch.randn(2, work.batch, work.length, work.embed_dim)
        return Batch((x, ~real), wanted, real)


class Transformer(torch.nn.Module):
    """`torch.nn.Transformer`; its target is causal."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        self.transformer = torch.nn.Transformer(
            work.embed_dim,
            work.num_heads,
            work.layers,
            work.layers,
            work.hidden,
            work.dropout,
            work.activation,
            batch_first=True,
        )

    def forward(self, source: Any, target: Any, causal: Any) -> Any:
        """Return (N, L, E) for two of it and the causal float mask (L, L)."""
        return self.transformer(source, target, tgt_mask=causal, tgt_is_causal=True)

    def draw(self) -> Batch:
        """Draw a batch."""
        work = self.work
        source, target, wanted = torch.randn(3, work.batch, work.length, work.embed_dim)
        causal = torch.nn.Transformer.generate_square_subsequent_mask(work.length)
        return Batch((source, target, causal), wanted)


class Vit(torch.nn.Module):
    """A vision transformer: patches, a class token, norms first."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        layer = torch.nn.TransformerEncoderLayer(
            work.embed_dim,
            work.num_heads,
            work.hidden,
            work.dropout,
            work.activation,
            batch_first=True,
            norm_first=True,
        )
        norm = torch.nn.LayerNorm(work.embed_dim)
        self.patches = torch.nn.Conv2d(3, work.embed_dim, PATCH, PATCH)
        self.token = torch.nn.Parameter(torch.zeros(1, 1, work.embed_dim))
        self.places = torch.nn.Parameter(0.02 * torch.randn(1, work.length, work.embed_dim))
        self.encoder = torch.nn.TransformerEncoder(
            layer, work.layers, norm, enable_nested_tensor=False
        )
        self.head = torch.nn.Linear(work.embed_dim, CLASSES)

    def forward(self, images: Any) -> Any:
        """Return (N, classes) for (N, 3, height, width)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.encoder(x)[:, 0])

    def draw(self) -> Batch:
        """Draw a batch of square images."""
        side = PATCH * math.isqrt(self.work.length - 1)
        images = torch.randn(self.work.batch, 3, side, side)
        return Batch((images,), torch.randint(CLASSES, (self.work.batch,)))


MODELS: dict[str, Any] = {"encoder": Encoder, "transformer": Transformer, "vit": Vit}


def build(work: Workload, seed: int = 0) -> Any:
    """Build a workload's model; the seed gives its parameters.

    Examples
    --------
    >>> model = build(Workload("vit", 2, 5, 16, 2, 32, 1))
    >>> model.draw().inputs[0].shape, model(*model.draw().inputs).shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 10]))
    """
    torch.manual_seed(seed)
    return MODELS[work.model](work)
