"""`torch.nn.MultiheadAttention`, computed by the engine."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from multihead.torch.composed import composed
from multihead.torch.function import Attention, run
from multihead.torch.options import Options

_COMPUTED = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_PLAIN = torch.nn.modules.linear.NonDynamicallyQuantizableLinear


def _plain(x: torch.Tensor) -> bool:
    return bool(x.device.type == "cpu" and x.layout == torch.strided)


def _mask_fits(
    mask: torch.Tensor | None, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> bool:
    if mask is None:
        return True
    return _plain(mask) and mask.dtype in (torch.bool, dtype) and tuple(mask.shape) in shapes


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` on the engine: same constructor, state dict, call and errors.

    Fast with dropout, returned weights, masks that have gradients and padding, in memory that
    grows with the sequence. Tensors that are not in CPU memory, of a dtype that the engine lacks,
    and calls that PyTorch refuses go to PyTorch's own implementation unchanged.

    Two things differ. A query that its masks hide every key from gets zeros, weights of 0 and
    gradients of 0, on every path. And ``is_causal=True`` is a causal mask, with or without an
    `attn_mask` beside it, where PyTorch takes it for a hint.

    Notes
    -----
    Each training call with dropout draws one seed from PyTorch's generator. An `out_proj` that was
    replaced, or has hooks or parametrizations, is called as a module.

    Examples
    --------
    >>> import torch
    >>> theirs = torch.nn.MultiheadAttention(8, 2)
    >>> ours = MultiheadAttention(8, 2)
    >>> ours.load_state_dict(theirs.state_dict())
    <All keys matched successfully>
    >>> x = torch.randn(5, 3, 8)
    >>> torch.allclose(ours(x, x, x)[0], theirs(x, x, x)[0], atol=1e-6)
    True
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; parameters and results are those of `torch.nn.MultiheadAttention.forward`.

        Parameters
        ----------
        query, key, value : Tensor
            (L, N, E), (S, N, kdim) and (S, N, vdim); batch first (N, L, E) and so on; unbatched
            (L, E).
        key_padding_mask : Tensor, optional
            (N, S) or (S,), bool (True = ignore) or float (added).
        need_weights : bool
        attn_mask : Tensor, optional
            (L, S) or (N * H, L, S), bool (True = ignore) or float (added).
        average_attn_weights : bool
        is_causal : bool
            Query i sees keys up to i, whatever else the masks say.

        Returns
        -------
        out : Tensor
            Shaped like `query`.
        weights : Tensor or None
            (N, L, S'), or (N, H, L, S') for each head, after dropout.
        """
        params = self._params()
        if not self._fits(query, key, value, key_padding_mask, attn_mask, params):
            refused: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return refused
        unbatched, dtype = query.dim() == 2, query.dtype
        if unbatched:
            query, key, value = query[None], key[None], value[None]
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask[None]
        dropout = (0.0, 0, 0)
        if self.training and self.dropout > 0:
            dropout = (self.dropout, int(torch.empty((), dtype=torch.int64).random_()), 0)
        options = Options(
            self.num_heads,
            self.add_zero_attn,
            bool(is_causal),
            dropout,
            bool(average_attn_weights) if need_weights else None,
            not self.batch_first and not unbatched,
        )
        tensors: list[Any] = [query, key, value, key_padding_mask, attn_mask, *params]
        custom = self._out_proj_is_custom()
        if custom:  # heads side by side, then the module
            tensors[-2:] = [torch.eye(self.embed_dim, dtype=dtype), None]
        if dtype in _HALF:
            tensors = [x.float() if x is not None and x.is_floating_point() else x for x in tensors]
        if self._transformed():
            out, weights = composed(options, *tensors)
        elif torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            out, weights = Attention.apply(options, *tensors)
        else:
            out, weights, _ = run(options, tensors, keep=False)
        if dtype in _HALF:
            out, weights = out.to(dtype), None if weights is None else weights.to(dtype)
        if custom:
            out = self.out_proj(out)
        if unbatched:
            out, weights = out[0], None if weights is None else weights[0]
        return out, weights

    def _params(self) -> tuple[torch.Tensor | None, ...]:
        return (
            self.in_proj_weight,
            self.q_proj_weight,
            self.k_proj_weight,
            self.v_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.out_proj.weight if hasattr(self.out_proj, "weight") else None,
            getattr(self.out_proj, "bias", None),
        )

    def _out_proj_is_custom(self) -> bool:
        m = self.out_proj
        return type(m) is not _PLAIN or bool(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        )

    @staticmethod
    def _transformed() -> bool:
        """Whether PyTorch follows this call through its own operations."""
        return bool(
            torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()
        )

    def _fits(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        padding: torch.Tensor | None,
        mask: torch.Tensor | None,
        params: tuple[torch.Tensor | None, ...],
    ) -> bool:
        """Whether the engine computes this call; all that PyTorch would refuse does not fit."""
        dtype, rank = query.dtype, query.dim()
        if dtype not in _COMPUTED and dtype not in _HALF:
            return False
        if torch.is_autocast_enabled("cpu") or not 0 <= self.dropout <= 1:
            return False
        for x in (query, key, value):
            if not _plain(x) or x.dtype != dtype or x.dim() != rank:
                return False
        for p in params:
            if p is not None and (not _plain(p) or p.dtype != dtype):
                return False
        if rank == 2:
            n, length, source = 1, query.shape[0], key.shape[0]
        elif rank == 3:
            batch, tokens = (0, 1) if self.batch_first else (1, 0)
            n, length, source = query.shape[batch], query.shape[tokens], key.shape[tokens]
            if key.shape[batch] != n:
                return False
        else:
            return False
        if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != self.embed_dim:
            return False
        if key.shape[-1] != self.kdim or value.shape[-1] != self.vdim:
            return False
        paddings = ((n, source) if rank == 3 else (source,),)
        masks = ((length, source), (n * self.num_heads, length, source))
        return _mask_fits(padding, paddings, dtype) and _mask_fits(mask, masks, dtype)
