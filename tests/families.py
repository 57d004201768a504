"""Hugging Face's families that the engine serves, tiny, and those that it does not: as data.

`test_torch_families.py` runs each, and `tools/families.py` makes the table in `docs/torch.md`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Family(NamedTuple):
    """What is run of a family.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    sizes : dict
        What its configuration takes besides `SIZES`.
    note : str
    """

    kind: str
    sizes: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    note: str = ""


# of each kind: transformers' class that makes its models
KINDS = {
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModel",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "vision": "AutoModel",
    "sound": "AutoModel",
    "speech": "AutoModelForSpeechSeq2Seq",
}
GENERATING = ("decoder", "encoder-decoder", "speech")
BESIDES = ("aimv2_vision_model",)  # call PyTorch's function in a part that has no interface
UNSUNK = ("granite_swa",)  # their eager function gives the weights that would be without sinks
BEAMS = ("llama", "gpt2", "gemma2", "gpt_oss", "qwen3_moe", "deepseek_v3", "bart", "t5", "whisper")

# Whatever of these a family's configuration knows; no dropout, so that training can be compared.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 41),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "qk_head_dim"), 12),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "n_inner"), 40),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "dff"), 40),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 20),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "sliding_window"), 4),
    "num_key_value_heads": 2,
    "hidden_size_per_layer_input": 5,
    "embedding_size": 24,
    "q_lora_rank": 17,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "image_size": 15,
    "patch_size": 5,
    "num_frames": 2,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 40,
    "conv_dim": (16, 16),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "apply_spec_augment": False,
    **dict.fromkeys(("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    **dict.fromkeys(("dropout", "dropout_p", "dropout_rate", "hidden_dropout"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    **dict.fromkeys(("attention_dropout_prob", "activation_dropout", "residual_dropout"), 0.0),
    **dict.fromkeys(("embedding_dropout", "feat_proj_dropout", "final_dropout"), 0.0),
    **dict.fromkeys(("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "drop_path_rate"), 0.0),
    **dict.fromkeys(("mask_time_prob", "mask_feature_prob", "mask_ratio"), 0.0),
}

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_chunk_size": 8}
_MIXED = ["mamba", "attention"]
NOT_SDPA_EITHER = 'not with `"sdpa"`'
_LATENT = {"num_key_value_heads": 4, "head_dim": 4}  # keys from a latent, a head for each query's


def _plain(kind: str, names: str) -> dict[str, Family]:
    return {name: Family(kind) for name in names.split()}


FAMILIES: dict[str, Family] = {
    **_plain(
        "decoder",
        "llama mistral mixtral ministral ministral3 qwen2 qwen2_moe qwen3 qwen3_moe gemma "
        "gemma3_text gemma4_text gpt2 gpt_bigcode codegen ctrl gpt_neox gptj phi phi3 phimoe "
        "opt biogpt cohere cohere2 olmo olmo2 olmo3 olmoe flex_olmo starcoder2 granite "
        "granitemoe granitemoeshared nemotron persimmon glm glm4 glm4_moe smollm3 helium "
        "ernie4_5 ernie4_5_moe exaone4 exaone_moe seed_oss hunyuan_v1_dense hunyuan_v1_moe "
        "hy_v3 dots1 bitnet arcee apertus modernbert-decoder nanochat minimax_m2 cwm jais2 "
        "laguna afmoe llama4_text solar_open mimo_v2_flash moshi diffllama jetmoe doge",
    ),
    "gemma2": Family("decoder", note='capped scores; not with `"sdpa"`'),
    "vaultgemma": Family("decoder", note='capped scores; not with `"sdpa"`'),
    "gpt_oss": Family("decoder", note='sinks; not with `"sdpa"`'),
    "granite_swa": Family("decoder", note="sinks; eager's weights are those without them"),
    "stablelm": Family("decoder", {"partial_rotary_factor": 0.5}),
    "deepseek_v2": Family("decoder", _LATENT, note="values narrower than keys"),
    "deepseek_v3": Family("decoder", _LATENT, note="values narrower than keys"),
    "glm4_moe_lite": Family("decoder", _LATENT, note="values narrower than keys"),
    "minicpm3": Family("decoder", _LATENT, note="values narrower than keys"),
    "youtu": Family("decoder", _LATENT, note="values narrower than keys"),
    "bamba": Family("decoder", {**_MAMBA, "attn_layer_indices": [1]}, note="attention layers"),
    "falcon_h1": Family("decoder", {**_MAMBA, "mamba_d_ssm": 96}, note="attention layers"),
    "gemma3n_text": Family(
        "decoder",
        {
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "granitemoehybrid": Family(
        "decoder",
        {**_MAMBA, "layer_types": _MIXED, "layers_block_type": _MIXED},
        note="attention layers",
    ),
    "lfm2": Family("decoder", note="attention layers"),
    "lfm2_moe": Family(
        "decoder", {"layer_types": ["conv", "full_attention"]}, note="attention layers"
    ),
    "recurrent_gemma": Family(
        "decoder", {"block_types": ["recurrent", "attention"]}, note="attention layers"
    ),
    "jamba": Family(
        "decoder", {"attn_layer_offset": 1, "attn_layer_period": 2}, note="attention layers"
    ),
    "qwen3_next": Family(
        "decoder",
        {
            "layer_types": ["linear_attention", "full_attention"],
            **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
            **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
        },
        note="attention layers",
    ),
    **_plain(
        "encoder",
        "bert roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl camembert electra distilbert "
        "albert ernie esm mobilebert modernbert nomic_bert eurobert layoutlm data2vec-text gte "
        "jina_embeddings_v3 bert-generation clip_text_model",
    ),
    "markuplm": Family("encoder", note=NOT_SDPA_EITHER),
    "splinter": Family("encoder", note=NOT_SDPA_EITHER),
    "roc_bert": Family(
        "encoder",
        {
            **dict.fromkeys(("shape_vocab_size", "pronunciation_vocab_size"), 20),
            **dict.fromkeys(("shape_embed_dim", "pronunciation_embed_dim"), 8),
        },
    ),
    **_plain(
        "encoder-decoder",
        "bart mbart pegasus marian blenderbot blenderbot-small m2m_100 plbart mt5 umt5",
    ),
    "switch_transformers": Family(
        "encoder-decoder",
        {"decoder_start_token_id": 0, "expert_capacity": 64, "router_jitter_noise": 0.0},
        note=NOT_SDPA_EITHER,
    ),
    "t5": Family("encoder-decoder", {"decoder_start_token_id": 0}, note="position biases"),
    **_plain(
        "vision",
        "vit deit dinov2 dinov2_with_registers clip_vision_model beit ijepa "
        "vit_mae vit_msn videomae pixtral mlcd_vision_model dpt pixio",
    ),
    "aimv2_vision_model": Family("vision", note="its pooling calls PyTorch's function"),
    "siglip_vision_model": Family("vision", note="its pooling is a `MultiheadAttention`"),
    "dinov3_vit": Family("vision"),
    "yolos": Family("vision", {"image_size": [15, 15]}),
    "vivit": Family("vision", {"tubelet_size": [1, 5, 5]}),
    **_plain("sound", "hubert wav2vec2 unispeech unispeech-sat sew data2vec-audio"),
    "wav2vec2-conformer": Family("sound"),
    "wav2vec2-bert": Family("sound", {"feature_projection_input_dim": 40, "num_mel_bins": 40}),
    "speech_to_text": Family(
        "speech",
        {"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 40},
        note=NOT_SDPA_EITHER,
    ),
    "whisper": Family("speech"),
}

# Those that say, where "multihead" is set, why they would not call it; transformers' reasons.
NOT_SDPA = 'transformers computes them with "eager" alone (`do not support "sdpa"`)'
OWN_CLASSES = "they choose among attention classes of their own by name (`know ... and not`)"
OWN_WAY = "they attend in a class of their own (`compute attention in ...`)"
REFUSED: dict[str, tuple[str, ...]] = {
    NOT_SDPA: (
        *("align", "big_bird", "bigbird_pegasus", "blip", "bloom", "clap", "convbert", "deberta"),
        *("deberta-v2", "deepseek_v4", "flava", "fsmt", "funnel", "gpt_neo", "informer", "led"),
        *("longformer", "longt5", "lxmert", "mpnet", "mpt", "nllb-moe", "openai-gpt"),
        *("pegasus_x", "prophetnet", "reformer", "rembert", "roformer"),
        *("speecht5", "swinv2", "tapas", "timesformer"),
        *("visual_bert", "wavlm", "xglm", "xlm", "xlnet"),
    ),
    OWN_CLASSES: ("data2vec-vision", "falcon", "sam_hq_vision_model", "sam_vision_model"),
    OWN_WAY: ("aria", "gemma3n_audio", "granite_speech_encoder", "pp_formulanet_vision"),
}
