"""Small models and pipelines of diffusers with live weights: every branch, and no size that is usual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.checkpoints.compare import enliven

CONTEXT = 20  # tokens
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_LETTERS = [chr(code) for code in range(33, 127)]
_MERGES = ["a t</w>", "t h", "th e</w>", "o f</w>"]

VAES: dict[str, dict[str, Any]] = {
    "three": {
        "block_out_channels": (16, 24, 32),
        "layers_per_block": 2,
        "latent_channels": 5,
        "sample_size": 64,
    },
    "plain": {
        "block_out_channels": (8, 16),
        "in_channels": 1,
        "out_channels": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "shift_factor": 0.1,
        "force_upcast": False,
    },
}

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 4,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": (1, 2, 1),
        "attention_head_dim": (2, 4, 6),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-4,
        "upcast_attention": True,
    },
    "rare": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "only_cross_attention": [True, False],
        "mid_block_scale_factor": 1.5,
        "center_input_sample": True,
        "conv_in_kernel": 5,
        "conv_out_kernel": 5,
        "num_class_embeds": 7,
        "encoder_hid_dim": 20,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_padding": 0,
        "time_embedding_dim": 40,
        "transformer_layers_per_block": [1, [2]],
        "reverse_transformer_layers_per_block": [[1, 2], [2, 1]],
    },
    "no_middle": {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": None,
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "cross_attention_dim": (24, 24),
    },
}


DITS: dict[str, dict[str, Any]] = {
    "alpha": {"sample_size": 16, "caption_channels": 20, "cross_attention_dim": 48},
    "sizes": {
        "sample_size": 12,
        "use_additional_conditions": True,
        "caption_channels": 20,
        "cross_attention_dim": 48,
        "interpolation_scale": 2.0,
        "out_channels": 4,
    },
    "plain": {"sample_size": 16, "patch_size": 4, "attention_bias": False, "cross_attention_dim": 36},
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_dit(**options: Any) -> PixArtTransformer2DModel:
    """Two layers, four heads of 12."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2}
    dit: PixArtTransformer2DModel = enliven(PixArtTransformer2DModel(**sizes, **options))
    return dit


def make_vae(**options: Any) -> AutoencoderKL:
    """Groups of 4, one layer a resolution where `options` does not say otherwise."""
    count = len(options["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}
    vae: AutoencoderKL = enliven(AutoencoderKL(**{**blocks, "norm_num_groups": 4, **options}))
    return vae


def make_unet(**options: Any) -> UNet2DConditionModel:
    """Groups of 4 and texts of width 24 where `options` does not say otherwise."""
    defaults = {"cross_attention_dim": 24, "norm_num_groups": 4, "sample_size": 16}
    unet: UNet2DConditionModel = enliven(UNet2DConditionModel(**{**defaults, **options}))
    return unet


def make_pipeline(folder: Path, *, large: bool) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A whole pipeline, its vocabularies written below `folder`."""
    tokenizer, size = _make_tokenizer(folder / "one", "<|endoftext|>")
    vae = make_vae(block_out_channels=(8, 16), sample_size=24, scaling_factor=0.13025)
    if not large:
        unet = make_unet(
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            sample_size=(12, 8),
        )
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=_make_encoder(size, 24),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=PNDMScheduler(skip_prk_steps=True, **_BETAS),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    unet = make_unet(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=24 + 32,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
        sample_size=(8, 12),
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=_make_encoder(size, 24),
        text_encoder_2=_make_encoder(size, 32, projection=20),
        tokenizer=tokenizer,
        tokenizer_2=_make_tokenizer(folder / "two", "!")[0],
        unet=unet,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **_BETAS),
    )


def _make_tokenizer(folder: Path, pad: str) -> tuple[CLIPTokenizer, int]:
    """CLIP's, over printable ASCII and four merges."""
    folder.mkdir(parents=True)
    tokens = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), *(merge.replace(" ", "") for merge in _MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    merges.write_text("\n".join(["#version: 0.2", *_MERGES, ""]))
    return CLIPTokenizer(str(vocabulary), str(merges), pad_token=pad, model_max_length=CONTEXT), len(tokens)


def _make_encoder(vocab_size: int, width: int, *, projection: int | None = None) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=projection or 16,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=0,
    )
    encoder: CLIPTextModel = enliven((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))
    return encoder
