"""An image autoencoder on its own."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import VaeComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.handlers.shared.diffusion import describe_latents, make_condition, make_part, make_part_graph
from specs.schema import Spec, TensorSpec


@final
class ImageAutoencodingHandler(Handler):
    """`diffusion.vae`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: make_part(config) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        return make_part_graph(graph, component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        return make_condition(tensor, shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["autoencoder"]
        config = cast(VaeComponent, spec.components[name])
        return {
            "kind": "image-autoencoding",
            "encode": f"{name}.encode",
            "decode": f"{name}.decode",
            "image": {
                "height": spec.dims["image_height"].opt,
                "width": spec.dims["image_width"].opt,
                "channels": config.in_channels,
            },
            **describe_latents(config),
        }
