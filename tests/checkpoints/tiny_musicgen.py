"""Small models of MusicGen with live weights, mono and stereo, as the library saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tests.checkpoints.compare import enliven

START = 64  # the token behind the codes
TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
DECODER: dict[str, Any] = {
    "vocab_size": START,
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "ffn_dim": 50,
    "num_codebooks": 4,
    "pad_token_id": START,
    "bos_token_id": START,
    "max_position_embeddings": 64,
}
CODEC: dict[str, Any] = {  # 10 frames a second, 4 codebooks of 64 codes
    "num_filters": 4,
    "hidden_size": 16,
    "upsampling_ratios": [5, 4, 2],
    "codebook_size": 64,
    "target_bandwidths": [0.24],
    "sampling_rate": 400,
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}
#: Changes of text encoder, decoder and codec.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "mono": ({}, {}, {}),
    "stereo": (
        {"feed_forward_proj": "gated-gelu", "d_model": 30},
        {"audio_channels": 2, "activation_function": "relu", "num_attention_heads": 5},
        {"target_bandwidths": [0.12]},
    ),
}
PROMPTS = ([5, 9, 200, 1], [17, 1], [3, 4, 5, 6, 7, 8, 9, 10, 11, 1])


def make_config(case: str = "mono") -> hf.MusicgenConfig:
    text, decoder, codec = CASES[case]
    return hf.MusicgenConfig(
        text_encoder=hf.T5Config(**{**TEXT, **text}).to_dict(),
        decoder=hf.MusicgenDecoderConfig(**{**DECODER, **decoder}).to_dict(),
        audio_encoder=hf.EncodecConfig(**{**CODEC, **codec}).to_dict(),
    )


def save(folder: Path, case: str, *, dtype: torch.dtype = torch.float32) -> Path:
    model = hf.MusicgenForConditionalGeneration(make_config(case))
    generator = torch.Generator().manual_seed(1)
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_(generator=generator)
    enliven(model, scale=1.3)
    for name, value in {
        "decoder_start_token_id": START,
        "pad_token_id": START,
        "bos_token_id": START,
        "guidance_scale": 3.0,
        "max_length": 30,
    }.items():
        setattr(model.generation_config, name, value)
    model.to(dtype).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 11, "waltz": 12, "drums": 13}, "<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words.save(str(folder / "tokenizer.json"))
    return folder
