"""Layers, and caches of keys and values, in safetensors files."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from multihead.arrays import Array
from multihead.checks import wrong, wrong_type
from multihead.files import read, refused, write
from multihead.kv_cache import KVCache
from multihead.layer import MultiheadAttention
from multihead.parameters import parameter_shapes
from multihead.rope import Rope
from multihead.state import checked_sizes, taken

__all__ = ["load", "load_cache", "save", "save_cache"]

_KEY, _CACHE_KEY = "multihead", "multihead.kv_cache"  # in a file's metadata


def save(layer: MultiheadAttention, path: str | os.PathLike[str]) -> None:
    """Save a layer to a safetensors file.

    The tensors are those of `layer.state_dict()`, bfloat16 ones as their bits in uint16; options
    and `rng_state` are in the metadata. Gradients and the cache are not saved.

    Parameters
    ----------
    layer : MultiheadAttention
    path : path-like
        Written over if it exists: a new file, complete and on the disk, takes its name, so that
        whatever happens meanwhile there is the old one or the new one.

    Raises
    ------
    ImportError
        If safetensors is not installed (``pip install "multihead[checkpoint]"``).
    OSError
        If the file cannot be written. What was there before is there still.

    Examples
    --------
    >>> import os, tempfile
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(8, 2, dropout=0.1, seed=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "layer.safetensors")
    ...     mh.checkpoint.save(layer, path)
    ...     again = mh.checkpoint.load(path)
    >>> again, again.rng_state
    (MultiheadAttention(embed_dim=8, num_heads=2, dropout=0.1), (3, 0))
    """
    if not hasattr(layer, "rng_state"):
        got = type(layer).__name__
        raise wrong_type("layer", "a MultiheadAttention, and then the path", got)
    tensors = layer.state_dict()
    tensors = {name: _as_bits(x) for name, x in tensors.items()}
    rope = None if layer.rope is None else layer.rope.to_dict()
    note = {"options": layer.options() | {"rope": rope}, "rng_state": layer.rng_state}
    write(path, tensors, {_KEY: json.dumps(note)})


def load(path: str | os.PathLike[str]) -> MultiheadAttention:
    """Load a layer that `save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    MultiheadAttention
        In training mode, with the parameters, options and `rng_state` of the saved one.

    Raises
    ------
    ImportError
        If safetensors is not installed (``pip install "multihead[checkpoint]"``).
    ValueError
        If the file was not written by `save`, or does not hold what its options ask for.
    OSError
        If the file cannot be read.
    MemoryError
        If it asks for more memory than there is.

    Examples
    --------
    >>> import os, tempfile
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(8, 2, seed=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "layer.safetensors")
    ...     mh.checkpoint.save(layer, path)
    ...     again = mh.checkpoint.load(path)
    >>> bool((again.out_proj.weight == layer.out_proj.weight).all())
    True
    """
    note, tensors = read(path, _KEY, "multihead.checkpoint.save")
    with refused(path, "multihead.checkpoint.save"):
        if set(note) != {"options", "rng_state"}:
            raise wrong("metadata", "options and rng_state", sorted(note))
        return _layer(note["options"], note["rng_state"], tensors)


def save_cache(cache: KVCache, path: str | os.PathLike[str]) -> None:
    """Save a cache of keys and values, the rows in use, as safetensors.

    Parameters
    ----------
    cache : KVCache
    path : path-like
        Written over if it exists: a new file, complete and on the disk, takes its name, so that
        whatever happens meanwhile there is the old one or the new one.

    Raises
    ------
    ImportError
        If safetensors is not installed (``pip install "multihead[checkpoint]"``).
    OSError
        If the file cannot be written. What was there before is there still.

    Examples
    --------
    >>> import os, tempfile
    >>> import multihead as mh
    >>> cache = mh.KVCache(1, 2, 8, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "cache.safetensors")
    ...     mh.checkpoint.save_cache(cache, path)
    ...     mh.checkpoint.load_cache(path).lengths
    array([0])
    """
    tensors = {name: _as_bits(x) for name, x in cache.state_dict().items()}
    write(path, tensors, {_CACHE_KEY: json.dumps(cache.options())})


def load_cache(path: str | os.PathLike[str]) -> KVCache:
    """Load a cache that `save_cache` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    KVCache

    Raises
    ------
    ImportError
        If safetensors is not installed (``pip install "multihead[checkpoint]"``).
    ValueError
        If the file was not written by `save_cache`, or does not hold what its options ask for.
    OSError
        If the file cannot be read.
    MemoryError
        If it asks for more memory than there is.

    Examples
    --------
    >>> import os, tempfile
    >>> import multihead as mh
    >>> cache = mh.KVCache(2, 1, 8, 4)
    >>> cache.lengths = [3, 5]  # after their rows were written by hand
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "cache.safetensors")
    ...     mh.checkpoint.save_cache(cache, path)
    ...     again = mh.checkpoint.load_cache(path)
    >>> again.lengths, again.capacity
    (array([3, 5]), 8)
    """
    note, tensors = read(path, _CACHE_KEY, "multihead.checkpoint.save_cache")
    with refused(path, "multihead.checkpoint.save_cache"):
        sizes = note["batch"], note["num_kv_heads"], note["head_dim"], note["value_dim"]
        keys, values = tensors["keys"].shape, tensors["values"].shape
        if (*keys[:2], keys[3], values[3]) != sizes:
            raise wrong("keys", sizes, keys)
        cache = KVCache(**note)
        cache.load_state_dict(tensors)
    return cache


def _layer(
    options: dict[str, Any], rng_state: tuple[int, int], tensors: dict[str, Array]
) -> MultiheadAttention:
    """Make the layer, once the sizes that the options claim are those of the tensors."""
    sizes = checked_sizes(taken(dict(options)))
    if options.get("rope") is not None:
        options = options | {"rope": Rope.from_dict(options["rope"])}
    for name, shape in parameter_shapes(sizes).items():
        if tensors[name].shape != shape:
            raise wrong(name, shape, tensors[name].shape)
    layer = MultiheadAttention(**options, seed=0)
    layer.rng_state = rng_state
    if layer.dtype == "bfloat16":
        dtype = layer.out_proj.weight.dtype
        tensors = {name: array.view(dtype) for name, array in tensors.items()}
    layer.load_state_dict(tensors)
    return layer


def _as_bits(x: Array) -> Array:
    """Return bfloat16 as what every reader of safetensors knows: bits."""
    return x.view(np.uint16) if x.dtype.name == "bfloat16" else x
