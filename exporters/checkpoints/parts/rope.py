"""Rotary positions as configs say them -> the fields of a `text.decoder`.

transformers 5 keeps everything in `rope_parameters`; earlier ones had `rope_theta` beside the sizes and `rope_scaling`
with `rope_type`, or `type` before that.
"""

from __future__ import annotations

import math
from typing import Any

from exporters.checkpoints.files.config import USE_ONNX, Config
from specs.errors import CheckpointError


def read_rope(config: Config) -> Config:
    """The mapping that says how positions are turned; an empty one when the config has none."""
    return config.take_config("rope_scaling" if config.data.get("rope_scaling") else "rope_parameters")


def describe_rope(
    config: Config, parameters: Config | None = None, *, theta: float = 10000.0, rename: dict[str, str] | None = None
) -> dict[str, Any]:
    """`rope_theta`, and where they say so `rope_scaling`, `rotary_share` and `max_positions`.

    Args:
        parameters: what `read_rope` gives, unless a family has several.
        theta: when the config says none.
        rename: types that a family treats as another one.
    """
    rope = read_rope(config) if parameters is None else parameters
    kind = rope.take_first(("rope_type", "type"), str, "default")
    kind = (rename or {}).get(kind, kind)
    share = rope.take("partial_rotary_factor", float, config.take("partial_rotary_factor", float, 1.0))
    fields: dict[str, Any] = {"rope_theta": rope.take("rope_theta", float, config.take("rope_theta", float, theta))}
    if share != 1.0:
        fields["rotary_share"] = share
    if kind == "default":
        return fields
    if kind == "dynamic":  # below this length nothing is scaled; beyond it, every new token would turn all others
        return {**fields, "max_positions": config.take("max_position_embeddings", int)}
    if kind == "linear":
        return {**fields, "rope_scaling": {"kind": "linear", "factor": rope.take("factor", float)}}
    if kind == "llama3":
        scaling = {key: rope.take(key, float) for key in ("factor", "low_freq_factor", "high_freq_factor")}
        return {**fields, "rope_scaling": {"kind": kind, **scaling, "original_positions": _read_original(config, rope)}}
    if kind == "yarn":
        return {**fields, "rope_scaling": _describe_yarn(config, rope)}
    if kind == "longrope":
        return {**fields, **_describe_longrope(config, rope)}
    raise CheckpointError(
        f"'rope_type' is {kind!r} in the checkpoint's config, which is not implemented",
        where=rope.where,
        allowed="default, linear, dynamic, llama3, yarn, longrope",
        fix=USE_ONNX,
    )


def _read_original(config: Config, rope: Config) -> int:
    """The length that the model was first trained on; one token has no logarithm to divide by."""
    key = "original_max_position_embeddings"
    if key in config or key not in rope:
        return config.take_count(key if key in config else "max_position_embeddings", least=2)
    return rope.take_count(key, least=2)


def _describe_yarn(config: Config, rope: Config) -> dict[str, Any]:
    original = _read_original(config, rope)
    factor = rope.take("factor", float) if "factor" in rope else config.take("max_position_embeddings", int) / original
    mscale, of_all = rope.take("mscale", float, 0.0), rope.take("mscale_all_dim", float, 0.0)
    attention = _measure_yarn(factor, mscale) / _measure_yarn(factor, of_all) if mscale and of_all else None
    return {
        "kind": "yarn",
        "factor": factor,
        "original_positions": original,
        "beta_fast": rope.take("beta_fast", float, 0.0) or 32.0,
        "beta_slow": rope.take("beta_slow", float, 0.0) or 1.0,
        "truncate": rope.take("truncate", bool, True),
        "attention_factor": rope.take("attention_factor", float, attention or _measure_yarn(factor, 1.0)),
    }


def _measure_yarn(factor: float, mscale: float) -> float:
    """How much scores grow so that their softmax stays as sharp over a longer text (YaRN, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _describe_longrope(config: Config, rope: Config) -> dict[str, Any]:
    """LongRoPE has a second set of factors for longer texts; the first one holds up to the original length."""
    original = _read_original(config, rope)
    factor = rope.take("factor", float) if "factor" in rope else config.take("max_position_embeddings", int) / original
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scaling = {
        "kind": "longrope",
        "factors": rope.take("short_factor", list),
        "attention_factor": rope.take("attention_factor", float, attention),
    }
    return {"rope_scaling": scaling, "max_positions": original}
