"""Good specs as short as they can be, which tests spoil."""

from __future__ import annotations

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
