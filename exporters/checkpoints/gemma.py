"""Gemma: scaled embeddings, norms around 1 + weight, GEGLU; Gemma 2: caps, windows in every other layer, more norms;
Gemma 3: normalised queries and keys, and another rotation in the layers with a window."""

from __future__ import annotations

from typing import Any, ClassVar, final

from exporters.checkpoints.files.config import Config
from exporters.checkpoints.llama import refuse_partial_rotation
from exporters.checkpoints.parts.decoder import (
    DecoderImporter,
    describe_activation,
    describe_sizes,
    describe_windows,
    take_layers,
)
from exporters.checkpoints.parts.rope import describe_rope


@final
class GemmaImporter(DecoderImporter):
    """`GemmaForCausalLM`."""

    title = "Gemma"
    model_types = ("gemma",)
    defaults: ClassVar = {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        refuse_partial_rotation(config)
        config.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
        # the first release said "gelu", and computed its tanh approximation
        said = describe_activation(config, default="gelu_pytorch_tanh")["activation"]
        activation = {"activation": "gelu_tanh" if said == "gelu" else said}
        return {**_describe_common(config), **activation, **describe_rope(config)}


@final
class Gemma2Importer(DecoderImporter):
    """`Gemma2ForCausalLM`."""

    title = "Gemma 2"
    model_types = ("gemma2",)
    defaults: ClassVar = {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        refuse_partial_rotation(config)
        layers = range(take_layers(config))
        types = ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
        return {
            **_describe_common(config),
            **describe_rope(config),
            **_describe_later(config, logit_softcap=30.0),
            **_describe_cap(config, "attn_logit_softcapping", "attention_softcap", 50.0),
            **describe_windows(config, config.take("sliding_window", int, 4096), types),
        }


@final
class Gemma3Importer(DecoderImporter):
    """`Gemma3ForCausalLM`: the text model alone."""

    title = "Gemma 3 (text)"
    model_types = ("gemma3_text",)
    defaults: ClassVar = {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
    }

    def describe(self, config: Config) -> dict[str, Any]:
        # the library reads it, and does not use it: what such a checkpoint was trained with is not known
        config.require("attn_logit_softcapping", (None,), None)
        layers = range(take_layers(config))
        key = "sliding_window_pattern" if "sliding_window_pattern" in config else "_sliding_window_pattern"
        pattern = config.take_positive(key, int, 6)
        types = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in layers]
        windows = describe_windows(config, config.take("sliding_window", int, 4096), types)
        far, near = _split_rope(config)
        plain = Config({key: value for key, value in config.data.items() if key != "rope_theta"}, config.where)
        near.require("rope_type", ("default",), "default")
        local = describe_rope(plain, near, theta=config.take("rope_local_base_freq", float, 10000.0))
        rotation = {"window_rope_theta": local["rope_theta"]} if windows else {}
        return {
            **_describe_common(config),
            **describe_rope(config, far, theta=1e6),
            **_describe_later(config, logit_softcap=None),
            **windows,
            **rotation,
            "qk_norm": True,
        }


def _split_rope(config: Config) -> tuple[Config, Config]:
    """The rotations of layers that see everything, and of those with a window, which `rope_scaling` leaves as it is."""
    nested = config.take_config("rope_parameters")
    full = nested.take_config("full_attention").data or {"rope_type": "default"}
    far = {**full, **config.take_config("rope_scaling").data}
    return Config(far, config.where), nested.take_config("sliding_attention")


def _describe_common(config: Config) -> dict[str, Any]:
    config.require("use_bidirectional_attention", (False,), False)
    biased = config.take("attention_bias", bool, False)
    return {
        **describe_sizes(config, head_dim=256, tied=True),
        "qkv_bias": biased,
        "out_bias": biased,
        "norm_offset": True,
        "embedding_scale": config.take_positive("hidden_size", int) ** 0.5,
    }


def _describe_later(config: Config, *, logit_softcap: float | None) -> dict[str, Any]:
    """What Gemma 2 and 3 share; `logit_softcap` is that of a config without the key."""
    return {
        **describe_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "post_norms": True,
        "attention_scale": config.take_positive("query_pre_attn_scalar", float, 256.0) ** -0.5,
        **_describe_cap(config, "final_logit_softcapping", "logit_softcap", logit_softcap),
    }


def _describe_cap(config: Config, key: str, ours: str, absent: float | None) -> dict[str, float]:
    """A soft cap: null is none, and a missing key is `absent`."""
    given = config.take_positive(key, float) if key in config else None
    cap = given if key in config.data else absent
    return {} if cap is None else {ours: cap}
