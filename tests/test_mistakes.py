"""Mistakes that people make: errors name the argument, what came, what was expected, a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multihead as mh
import multihead.torch as mt

CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {}
E, H, N, L = 16, 4, 2, 5
x = np.random.default_rng(0).standard_normal((N, L, E)).astype(np.float32)
q = np.random.default_rng(1).standard_normal((N, H, L, E)).astype(np.float32)
few = q[:, :2]
t = torch.from_numpy(x)
F = mh.functional


def layer(**options: Any) -> mh.MultiheadAttention:
    return mh.MultiheadAttention(E, H, seed=0, **{"batch_first": True} | options)


def called(*inputs: Any, **options: Any) -> Callable[[], Any]:
    given = inputs or (x, x, x)
    return lambda: layer()(*given, **options)


def attends(*inputs: Any, **options: Any) -> Callable[[], Any]:
    return lambda: F.scaled_dot_product_attention(*(inputs or (q, q, q)), **options)


def backward(d_out: Any, calls: int = 1, train: bool = True, **options: Any) -> Callable[[], Any]:
    def run() -> None:
        made = layer().train(train)
        made(x, x, x)
        for _ in range(calls):
            made.backward(d_out, **options)

    return run


def cached(capacity: int = 8, batch: int = N, train: bool = False) -> Callable[[], Any]:
    def run() -> None:
        made = layer().train(train)
        made(x, x, x, is_causal=True, kv_cache=made.new_kv_cache(batch, capacity))

    return run


def torch_called(*inputs: Any, **options: Any) -> Callable[[], Any]:
    return lambda: mt.MultiheadAttention(E, H, batch_first=True)(*inputs, **options)


def mistake(name: str, run: Callable[[], Any], error: type[Exception], text: str) -> None:
    assert name not in CASES
    CASES[name] = run, error, text


Ragged, ragged = mh.Ragged, mh.Ragged.from_list([x[0], x[1, :3]])
double, int64 = x.astype(np.float64), np.ones((N, L, E), np.int64)
array = "a NumPy array or one that speaks DLPack"
in_training = "cache: expected one of a call in training mode, got none: "

# dtypes and kinds of arrays
mistake(
    "NumPy's default dtype",
    called(double, double, double),
    TypeError,
    "query: expected float32, got float64 "
    '(query.astype(np.float32), or dtype="float64" for the layer)',
)
mistake(
    "integers",
    called(int64, int64, int64),
    TypeError,
    "query: expected float32, got int64 (query.astype(np.float32))",
)
mistake(
    "complex numbers",
    called(x.astype(complex), x, x),
    TypeError,
    "query: expected float32, got complex128",
)
mistake("objects", called(x.astype(object), x, x), TypeError, "query: expected float32, got object")
mistake(
    "another dtype for the key",
    called(x, x.astype(np.float16), x),
    TypeError,
    "key: expected float32, got float16 (key.astype(np.float32))",
)
mistake(
    "a list",
    called(x.tolist(), x, x),
    TypeError,
    f"query: expected {array}, got list (np.asarray(query))",
)


class DataFrame:
    """What pandas has of an array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(x[0], dtype)


mistake(
    "a data frame",
    called(DataFrame(), x, x),
    TypeError,
    f"query: expected {array}, got DataFrame (np.asarray(query))",
)
mistake(
    "a masked array",
    called(np.ma.masked_array(x), x, x),
    TypeError,
    "query: expected an array without a mask of its own (query.filled(0) and a mask argument), "
    "got a masked array",
)
mistake(
    "a tensor that requires grad",
    called(t.clone().requires_grad_(), t, t),
    TypeError,
    "query: expected an array outside autograd "
    "(query.detach(); backward() returns the gradients), got one that requires grad",
)
mistake(
    "a device",
    lambda: layer(device="cuda"),
    ValueError,
    "device: expected None or \"cpu\", got 'cuda'",
)


class OnGpu:
    """An array of another library, in a GPU's memory."""

    __dlpack__ = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


mistake(
    "an array on a GPU",
    called(OnGpu(), x, x),
    ValueError,
    "query: expected an array in CPU memory, got one on DLPack device (2, 0)",
)
mistake(
    "dtype that is no float",
    lambda: layer(dtype="int8"),
    TypeError,
    "dtype: expected float32, float64, float16 or bfloat16, got int8",
)

# shapes and their order
mistake(
    "features",
    called(x[..., 1:], x, x),
    ValueError,
    "query: expected (N, L, 16) or (L, 16), got (2, 5, 15)",
)
mistake(
    "one axis",
    called(x[0, 0], x, x),
    ValueError,
    "query: expected (N, L, 16) or (L, 16), got (16,)",
)
mistake(
    "heads as an axis",
    called(x[:, None], x, x),
    ValueError,
    "query: expected (N, L, 16) or (L, 16), got (2, 1, 5, 16)",
)
mistake(
    "keys with tokens first",
    called(x, x.swapaxes(0, 1), x.swapaxes(0, 1)),
    ValueError,
    "key: expected (2, S, 16), got (5, 2, 16) (key.swapaxes(0, 1) fits)",
)
mistake(
    "fewer values than keys",
    called(x, x, x[:, 1:]),
    ValueError,
    "value: expected (2, 5, 16), got (2, 4, 16)",
)
mistake("no value", called(x, x), TypeError, "missing 1 required positional argument: 'value'")
mistake(
    "grouped heads unasked",
    attends(q, few, few),
    ValueError,
    "key: expected (2, 4, S, 16), got (2, 2, 5, 16) "
    "(enable_gqa=True lets fewer heads of keys serve groups of query heads)",
)

# masks
mistake(
    "a mask of keys and queries",
    called(attn_mask=np.zeros((L, L + 1), bool)),
    ValueError,
    "attn_mask: expected (5, 5), (8, 5, 5) or 4-D that broadcasts to (2, 4, 5, 5), got (5, 6)",
)
mistake(
    "a mask for each sequence",
    called(attn_mask=np.zeros((N, L, L), bool)),
    ValueError,
    "got (2, 5, 5) (attn_mask[:, None] fits)",
)
mistake(
    "a mask for each head",
    called(attn_mask=np.zeros((H, L, L), bool)),
    ValueError,
    "got (4, 5, 5) (attn_mask[None] fits)",
)
mistake(
    "a mask of ones and zeros",
    called(attn_mask=np.ones((L, L), int)),
    TypeError,
    "attn_mask: expected bool or floating, got int64 "
    "(True means ignore here: attn_mask == 0 if 1 means keep)",
)
mistake(
    "a mask of ones and zeros in the functional form",
    attends(attn_mask=np.ones((L, L), int)),
    TypeError,
    "attn_mask: expected bool or floating, got int64 "
    "(True means attend here: attn_mask != 0 if 1 means keep)",
)
mistake(
    "a mask for each sequence in the functional form",
    attends(attn_mask=np.ones((N, L, L), bool)),
    ValueError,
    "attn_mask: expected a shape that broadcasts to (2, 4, 5, 5), got (2, 5, 5) "
    "(attn_mask[..., None, :, :] fits)",
)
mistake(
    "a list as a mask",
    called(attn_mask=[[True] * L] * L),
    TypeError,
    f"attn_mask: expected {array}, got list (np.asarray(attn_mask))",
)
mistake(
    "a tokenizer's mask",
    called(key_padding_mask=np.ones((N, L), int)),
    TypeError,
    "key_padding_mask: expected bool or floating, got int64 "
    "(True means ignore here: key_padding_mask == 0 if 1 means keep)",
)
mistake(
    "lengths as padding",
    called(key_padding_mask=np.array([5, 3])),
    TypeError,
    "key_padding_mask: expected bool or floating, got int64 "
    "(lengths? np.arange(5) >= key_padding_mask[:, None])",
)
mistake(
    "padding turned around",
    called(key_padding_mask=np.zeros((L, N), bool)),
    ValueError,
    "key_padding_mask: expected (2, 5), got (5, 2) (key_padding_mask.T fits)",
)
mistake(
    "batch_first forgotten",
    lambda: layer(batch_first=False)(x, x, x, key_padding_mask=np.zeros((N, L), bool)),
    ValueError,
    "key_padding_mask: expected (5, 2), got (2, 5) "
    "(key_padding_mask.T, or batch_first=True for the layer, fits)",
)
mistake(
    "the opposite polarity",
    called(attn_mask=np.tri(L, dtype=bool)),
    mh.MaskWarning,
    "attn_mask: 1 of 5 queries see no key in any sequence; True means ignore (~attn_mask?)",
)


# options
mistake(
    "heads that don't divide",
    lambda: mh.MultiheadAttention(E, 3),
    ValueError,
    "embed_dim: expected a multiple of num_heads = 3, or head_dim=, got 16",
)
mistake("a float of heads", lambda: mh.MultiheadAttention(E, 4.0), TypeError, "got 4.0")
mistake(
    "text for a flag",
    called(is_causal="no"),
    TypeError,
    "is_causal: expected True or False, got 'no'",
)
mistake(
    "per cent of dropout",
    lambda: layer(dropout=10),
    ValueError,
    "dropout: expected a number from 0 to 1, got 10",
)
mistake(
    "Keras's name of the class",
    lambda: getattr(mh, "MultiHeadAttention"),  # noqa: B009
    AttributeError,
    "has no attribute 'MultiHeadAttention'; did you mean 'MultiheadAttention'?",
)
mistake(
    "Keras's name of a size",
    lambda: layer(key_dim=4),
    TypeError,
    "unexpected keyword argument 'key_dim'; did you mean 'kdim'?",
)
mistake(
    "Hugging Face's name of a size",
    lambda: layer(num_key_value_heads=2),
    TypeError,
    "unexpected keyword argument 'num_key_value_heads'; did you mean 'num_kv_heads'?",
)
mistake(
    "another name of a mask",
    called(mask=None),
    TypeError,
    "unexpected keyword argument 'mask'; did you mean 'attn_mask'?",
)
mistake(
    "PyTorch's method",
    lambda: layer().forward(x, x, x),
    AttributeError,
    "has no attribute 'forward'; call the layer itself: layer(query, key, value)",
)
mistake(
    "rope's base alone",
    lambda: layer(rope=10000.0),
    TypeError,
    "rope: expected a Rope, a table (cos, sin) or None, got float (Rope(base=10000.0))",
)
mistake(
    "a size that cannot change",
    lambda: setattr(layer(), "num_heads", 8),
    AttributeError,
    "num_heads: cannot be changed, as the parameters follow from it; make a new layer",
)
mistake(
    "no threads",
    lambda: mh.set_num_threads(0),
    ValueError,
    "n: expected an integer from 1 to 1024, got 0",
)

# backward and caches
mistake(
    "backward first",
    lambda: layer().backward(x),
    ValueError,
    in_training + "this thread has not called the layer",
)
mistake(
    "backward after eval",
    backward(x, train=False),
    ValueError,
    in_training + "the last call was in eval mode; call layer.train() before it",
)
mistake(
    "backward twice",
    backward(x, calls=2),
    ValueError,
    in_training + "backward has used it up; to use one again, keep layer.cache and pass cache=",
)
mistake(
    "a gradient of another shape",
    backward(x[..., 1:]),
    ValueError,
    "d_out: expected (2, 5, 16), got (2, 5, 15)",
)
mistake(
    "a gradient of NumPy's default dtype",
    backward(double),
    TypeError,
    "d_out: expected float32, got float64 (d_out.astype(np.float32))",
)
mistake(
    "a gradient over what is read",
    backward(x, out=(x, None, None)),
    ValueError,
    "out[0]: expected memory apart from",
)
mistake(
    "backward of the functional form without a cache",
    lambda: F.scaled_dot_product_attention_backward(q, None),
    ValueError,
    "cache: expected one of a call with return_cache=True, got NoneType",
)
mistake(
    "a full cache",
    cached(capacity=3),
    ValueError,
    "kv_cache: expected room for 5 more of 3 rows (truncate, or a larger capacity), "
    "got lengths [0, 0]",
)
mistake(
    "a cache of another batch",
    cached(batch=3),
    ValueError,
    "kv_cache: expected keys and values (2, 4, 8, 4), got (3, 4, 8, 4)",
)
mistake(
    "a cache in training",
    cached(train=True),
    ValueError,
    "kv_cache: expected None in training mode (layer.eval() before decoding), got a KVCache",
)

# ragged batches
mistake(
    "dense keys for ragged queries",
    called(ragged, x, x),
    TypeError,
    "key: expected a Ragged, as the others are, got ndarray",
)
mistake(
    "padding of what has none",
    called(ragged, ragged, ragged, key_padding_mask=np.zeros((N, L), bool)),
    ValueError,
    "key_padding_mask: expected None with ragged inputs, got ndarray",
)
mistake(
    "sequences of other widths",
    lambda: Ragged.from_list([x[0], x[1, :, 1:]]),
    ValueError,
    "sequences[1]: expected (L, 16), got (5, 15)",
)
mistake(
    "sequences of other dtypes",
    lambda: Ragged.from_list([x[0], double[1]]),
    TypeError,
    "sequences[1]: expected float32, got float64 (sequences[1].astype(np.float32))",
)
mistake(
    "offsets that fall",
    lambda: Ragged(x[0], [0, 3, 2, 5]),
    ValueError,
    "offsets: expected a rising run from 0 to 5, got [0 3 2 5]",
)

# files
mistake(
    "a path as a state",
    lambda: layer().load_state_dict("model.pt"),
    TypeError,
    "state_dict: expected a mapping of names to arrays, got str (read a file first, as with "
    "torch.load)",
)
mistake(
    "another layer's state",
    lambda: layer().load_state_dict(mh.MultiheadAttention(8, 2).state_dict()),
    ValueError,
    "state_dict: in_proj_weight: expected (48, 16), got (24, 8)",
)
mistake(
    "another file as a checkpoint",
    lambda: mh.checkpoint.load(__file__),
    ValueError,
    "path: expected a file that multihead.checkpoint.save wrote, got ",
)
mistake(
    "the path before the layer",
    lambda: mh.checkpoint.save("layer.safetensors", layer()),  # type: ignore[arg-type]
    TypeError,
    "layer: expected a MultiheadAttention, and then the path, got str",
)

# PyTorch
mistake(
    "an array for a tensor",
    torch_called(x, x, x),
    TypeError,
    "query: expected a tensor, got ndarray (torch.from_numpy(query))",
)
mistake(
    "a mask for each sequence in PyTorch",
    torch_called(t, t, t, attn_mask=torch.zeros(N, L, L, dtype=torch.bool)),
    RuntimeError,
    "got (2, 5, 5): pass attn_mask[:, None] of each sequence",
)
mistake(
    "a NumPy layer to accelerate",
    lambda: mt.accelerate(layer()),  # type: ignore[arg-type]
    TypeError,
    "model: expected a torch.nn.Module, got MultiheadAttention",
)
mistake(
    "TorchScript",
    lambda: torch.jit.script(mt.MultiheadAttention(E, H)),
    NotImplementedError,
    "call multihead.torch.restore(model) before torch.jit.script(model), or use torch.export",
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error::multihead.MaskWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_to_do(name: str) -> None:
    run, error, text = CASES[name]
    with pytest.raises(error) as caught:
        run()
    assert text in str(caught.value)
