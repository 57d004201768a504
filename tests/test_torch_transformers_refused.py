"""What Hugging Face's models and versions are refused, when and how."""

from __future__ import annotations

import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from multihead.torch import register_transformers
from transformers_models import padded, registration, words


@pytest.fixture(autouse=True)
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Register, from a state of PyTorch's generator that the test's name gives."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    with registration():
        yield


SMALL: dict[str, dict[str, Any]] = {
    "LongT5": {"d_model": 24, "num_layers": 1, "num_heads": 3, "d_kv": 8},
    "XGLM": {"d_model": 24, "num_layers": 1, "attention_heads": 3, "ffn_dim": 31},
    "DebertaV2": {},
    "XLNet": {"d_model": 24, "n_layer": 1, "n_head": 3},
    "Funnel": {"d_model": 24, "n_head": 3, "block_sizes": [1]},
    "WavLM": {},
    "BlipVision": {},
    "Swinv2": {},
    "Falcon": {},
    "GPTNeo": {"num_layers": 1, "num_heads": 3, "attention_types": [[["global"], 1]]},
    "SamVision": {},
}


@pytest.mark.parametrize("kind", SMALL)
def test_models_that_would_not_call_it_say_so_when_it_is_set(kind: str) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    sizes = SMALL[kind] if "d_model" in SMALL[kind] else sizes | SMALL[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    why = f'{kind}Config models (do not support "sdpa"|know "eager", "sdpa".* and not)'
    with pytest.raises(ValueError, match=why):
        getattr(transformers, f"{kind}Model")._from_config(config, attn_implementation="multihead")


def test_a_part_of_a_model_may_have_another() -> None:
    vision = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    vision |= {"output_channels": 16, "image_size": 32, "patch_size": 16, "mlp_dim": 31}
    prompts = {"hidden_size": 16, "image_size": 32, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 31, "num_attention_heads": 2, "iou_head_hidden_dim": 9}
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    model = transformers.SamModel(config).eval()
    before = model.vision_encoder.config._attn_implementation
    with pytest.raises(ValueError, match=r'SamVisionConfig models know .* "vision_config": "sdpa"'):
        model.set_attn_implementation("multihead")
    assert model.vision_encoder.config._attn_implementation == before
    model.set_attn_implementation({"": "multihead", "vision_config": "sdpa"})
    assert model.config._attn_implementation == "multihead"
    assert model.vision_encoder.config._attn_implementation == "sdpa"


def test_what_was_set_behind_transformers_back_is_refused_in_the_call() -> None:
    config = transformers.XGLMConfig(
        vocab_size=37, pad_token_id=0, d_model=24, num_layers=1, attention_heads=3, ffn_dim=31
    )
    model = transformers.AutoModel.from_config(config)
    model.config._attn_implementation_internal = "multihead"
    with pytest.raises(ValueError, match='XGLMConfig models do not support "sdpa"'):
        model(words(), attention_mask=padded("left"))


def test_registering_again_changes_nothing() -> None:
    kinds = (AttentionInterface, AttentionMaskInterface)
    before = [dict(kind._global_mapping) for kind in kinds]
    register_transformers()
    assert [dict(kind._global_mapping) for kind in kinds] == before
    assert all("multihead" in mapping for mapping in before)


def test_transformers_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, multihead.torch as t\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"
        "try: t.register_transformers()\n"
        "except ImportError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install transformers" in run.stdout


def test_a_version_without_the_interface_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("transformers")
    old.__version__ = "4.40.0"  # type: ignore[attr-defined]
    for name in [x for x in sys.modules if x.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=r"AttentionMaskInterface, which transformers 4\.40\.0"):
        register_transformers()
