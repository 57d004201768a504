"""Hugging Face's models: `multihead.torch.register_transformers`."""

from __future__ import annotations


def register_transformers() -> None:
    """Register the attention function ``"multihead"`` with Hugging Face transformers.

    Afterwards ``model.set_attn_implementation("multihead")``, or
    ``attn_implementation="multihead"`` where a model is made, lets any model that supports
    ``"sdpa"`` through the attention interface compute attention on the engine, in training and
    generation. Masks and results are those of ``"sdpa"``. Calling it again changes nothing.

    Raises
    ------
    ImportError
        If transformers is not installed, or lacks the attention interface.

    Notes
    -----
    Tensors that are not in CPU memory go to transformers' own ``"sdpa"``.

    ``output_attentions=True`` in a call, or in ``generate``, returns weights as ``"eager"`` does,
    after dropout, with gradients where these are needed. Every score is in memory then.

    Where ``"multihead"`` is set, or a model is made with it, `ValueError` says which of its parts
    would not call it: most models that do not support ``"sdpa"``, and those that compute attention
    by themselves or choose among classes of their own. Name another implementation for them, as in
    ``{"": "multihead", "vision_config": "sdpa"}``.

    A cache's keys and values, dynamic or static, are read where they lie, and not copied.

    Capped scores (``softcap``), attention sinks (``s_aux``, ``sinks``), sliding windows and grouped
    heads are computed. Models that only these keep from ``"sdpa"``, as Gemma 2 and gpt-oss, run.
    ``head_mask``, which transformers' own models had until version 5, multiplies the weights of its
    heads. What would change the result and is not computed here raises `ValueError` during the
    call: sparse attention (``indices``, ``block_indices``).

    Packed sequences are told apart as transformers' flash attention does: by ``cu_seq_lens_q`` and
    ``cu_seq_lens_k``, which `transformers.DataCollatorWithFlattening` passes, or, in causal models
    and a batch of one, by ``position_ids`` that restart.

    Examples
    --------
    >>> import torch
    >>> import transformers
    >>> from multihead.torch import register_transformers
    >>> register_transformers()
    >>> config = transformers.BertConfig(
    ...     vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> model = transformers.AutoModel.from_config(config, attn_implementation="multihead")
    >>> tuple(model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape)
    (1, 3, 8)
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "register_transformers() needs Hugging Face transformers: pip install transformers"
        ) from error
    try:
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface
    except ImportError as error:
        version = getattr(transformers, "__version__", "of this version")
        raise ImportError(
            "register_transformers() needs AttentionInterface and AttentionMaskInterface, which "
            f"transformers {version} lacks: pip install --upgrade transformers"
        ) from error
    from multihead.torch import hugging_face

    AttentionMaskInterface.register(hugging_face.NAME, hugging_face.make_mask)
    AttentionInterface.register(hugging_face.NAME, hugging_face.attend)
    hugging_face.check_when_set()
