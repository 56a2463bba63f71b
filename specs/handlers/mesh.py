"""Text to mesh: a text's tokens, a latent, and points of space."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import ClipTextComponent
from specs.components.mesh import FieldComponent, TriplaneComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.mesh import Field, Triplane
from specs.models.text.clip import ClipText
from specs.samples.texts import make_text
from specs.schema import Spec, TensorSpec


@final
class TextToMeshHandler(Handler):
    """`text.clip`, `mesh.triplane` and `mesh.field`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, ClipTextComponent):
                modules[name] = ClipText(config)
            elif isinstance(config, TriplaneComponent):
                modules[name] = Triplane(config)
            else:
                modules[name] = Field(cast(FieldComponent, config))
        return modules

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "token_ids":
            return make_text(shape, int(tensor.high), random)
        if tensor.name == "points":
            return random.uniform(-1.0, 1.0, shape)
        return random.standard_normal(shape)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
        triplane = cast(TriplaneComponent, spec.components[roles["triplane"]])
        return {
            "kind": "text-to-mesh",
            **roles,
            "latent_size": triplane.latent_size,
            "tokenizer": {
                **describe_tokenizer(spec, roles["text_encoder"], vocab_size=text.vocab_size),
                "context_length": text.context_length,
                "end_of_text": text.vocab_size - 1,
            },
        }
