"""The module of whatever decoder writes a text."""

from __future__ import annotations

from specs.components import Component, DecoderComponent, Gpt2Component, NeoxComponent
from specs.models.text.causal import CausalModel
from specs.models.text.decoder import Decoder
from specs.models.text.gpt2 import Gpt2
from specs.models.text.neox import Neox


def make_decoder(config: Component) -> CausalModel:
    """The module of a decoder's component."""
    if isinstance(config, Gpt2Component):
        return Gpt2(config)
    if isinstance(config, NeoxComponent):
        return Neox(config)
    assert isinstance(config, DecoderComponent)
    return Decoder(config)
