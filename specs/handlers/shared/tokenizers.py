"""What a host is told of a component's tokenizer: `pipeline.tokenizer` in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specs.components import ClipTextComponent
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
    if vocab_size:
        described["vocab_size"] = vocab_size  # a tokenizer may know tokens that the model has no row for
    if tokenizer.chat_template:
        described |= {"chat_template": tokenizer.chat_template, "special_tokens": dict(tokenizer.special_tokens)}
    return described


def describe_texts(spec: Spec, name: str, config: ClipTextComponent) -> dict[str, Any]:
    """A tokenizer's file puts the end of text there itself; bytes and bare ids are followed by the largest id."""
    described = describe_tokenizer(spec, name, vocab_size=config.vocab_size)
    own = {} if described["kind"] == "tokenizers" else {"end_of_text": config.vocab_size - 1}
    return {**described, "context_length": config.context_length, **own}
