"""A denoiser on its own: no host loop."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.shared.diffusion import make_condition, make_part
from specs.schema import Spec, TensorSpec


@final
class ImageDenoisingHandler(Handler):
    """`diffusion.unet` or `diffusion.dit`."""

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Texts of different lengths, the first one full."""
        if "lengths" in inputs:
            tokens, rows = inputs["encoder_states"].shape[1], len(inputs["lengths"])
            inputs["lengths"] = np.maximum(1, tokens - np.arange(rows) * max(1, tokens // 3))
        return inputs

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: make_part(config) for name, config in spec.components.items()}

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return make_condition(tensor, shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        return {"kind": "tensors", "graph": name_roles(spec)["denoiser"]}
