"""What a host is told of a component's tokenizer: `pipeline.tokenizer` in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specs.schema import Spec
from specs.sources import is_checkpoint, name_tokenizer_asset

#: A byte tokenizer needs the 256 bytes, and an id each for the beginning and the end of a text.
BYTE_VOCABULARY = 258


def describe_tokenizer(spec: Spec, component: str, *, vocab_size: int) -> dict[str, Any]:
    """The component's `tokenizer.json` where the spec names one, else bytes where they fit, else bare ids.

    A checkpoint was trained on ids of its own: without its tokenizer they are nothing but ids.
    """
    tokenizer = spec.tokenizers.get(component)
    if tokenizer is None:
        foreign = is_checkpoint(Path(spec.weights.source))
        return {"kind": "bytes" if vocab_size >= BYTE_VOCABULARY and not foreign else "ids"}
    described: dict[str, Any] = {
        "kind": "tokenizers",
        "file": name_tokenizer_asset(component),
        "end_tokens": list(tokenizer.end_tokens),
        "pad_token": tokenizer.pad_token,
    }
    if tokenizer.chat_template:
        described |= {"chat_template": tokenizer.chat_template, "special_tokens": dict(tokenizer.special_tokens)}
    return described
