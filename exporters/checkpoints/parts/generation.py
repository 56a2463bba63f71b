"""`generation_config.json`: what `generate` follows by itself, and our host loops, which are greedy, do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporters.checkpoints.files.config import Config
from specs.errors import CheckpointError

#: Keys that change which token is the likeliest -> the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
}


def require_plain_generation(source: Config, others: Mapping[str, tuple[Any, ...]] | None = None) -> None:
    """Sampling and beams are a caller's choice, and not looked at.

    Args:
        source: generation_config.json, or the config of a folder without one.
        others: keys of this family, with the values that change nothing.

    Raises:
        CheckpointError: `source` asks for something that changes the greedy tokens.
    """
    for key, allowed in {**_NEUTRAL, **(others or {})}.items():
        if key in source and source.data[key] not in allowed:
            raise CheckpointError(
                f"'{key}' of the generation config changes what is made, and is not implemented",
                where=source.where,
                got=repr(source.data[key])[:80],
                allowed=", ".join(map(repr, allowed)) or "null",
                fix=f"remove '{key}': the result is then what generate gives without it",
            )
