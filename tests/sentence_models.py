"""A tiny model with the files of a trained one, made on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "read write a the file list of text number sum find lines in from to and".split()
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
LONGEST = 24


def make_model(folder: Path, seed: int = 0) -> transformers.BertModel:
    """Write a random model's files to a folder, and return it as transformers computes it."""
    vocabulary = SPECIAL | {word: i for i, word in enumerate(WORDS, len(SPECIAL))}
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=LONGEST,
    )
    torch.manual_seed(seed)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():  # as large as a trained model's
        noise = rng.normal(0, 0.3, parameter.shape).astype(np.float32)
        parameter.data += torch.from_numpy(noise)
    model.save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(x, SPECIAL[x]) for x in ("[CLS]", "[SEP]")]
    )
    tokenizer.enable_padding(length=LONGEST)  # as trained models' files have it
    tokenizer.save(str(folder / "tokenizer.json"))
    return model
