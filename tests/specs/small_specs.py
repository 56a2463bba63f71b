"""Good specs as short as they can be, which tests spoil."""

from __future__ import annotations

import pytest

from specs.errors import MetagenError
from specs.parsing.parse import parse_spec

GOOD = """\
name: reader
modality: {inputs: [image], outputs: [label]}
objective: classification
components:
  classifier:
    kind: vision.vit
    image_size: 8
    patch_size: 2
    hidden_size: 96
    num_layers: 2
    num_heads: 3
    num_classes: 10
dims:
  batch: {min: 1, opt: 2, max: 8}
variants:
  tiny:
    classifier: {hidden_size: 12}
    dims: {batch: {max: 4}}
"""
DECODER = """\
name: writer
modality: {inputs: [text], outputs: [text]}
objective: autoregressive
components:
  decoder: {kind: text.decoder, vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 4, mlp_size: 32}
"""


def require_refusal(old: str, new: str, kind: type[MetagenError], text: str) -> None:
    """GOOD with `new` for `old`, which it has once, is refused by this error with this whole text."""
    assert GOOD.count(old) == 1
    with pytest.raises(MetagenError) as caught:
        parse_spec(GOOD.replace(old, new), source="my.yaml")
    assert type(caught.value) is kind
    assert str(caught.value) == text
