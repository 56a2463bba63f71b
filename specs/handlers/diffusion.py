"""Autoencoders and denoisers on their own."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import Component, DitComponent, UNetComponent, VaeComponent
from specs.families.denoising import TIMESTEPS
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.image import make_image
from specs.models.autoencoder import Autoencoder, Decode, Encode
from specs.models.dit import Dit
from specs.models.unet import UNet
from specs.schema import Spec, TensorSpec


@final
class AutoencodingHandler(Handler):
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


@final
class DenoisingHandler(Handler):
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


def make_part(config: Component) -> nn.Module:
    """The module of a diffusion component."""
    if isinstance(config, VaeComponent):
        return Autoencoder(config)
    if isinstance(config, DitComponent):
        return Dit(config)
    assert isinstance(config, UNetComponent), config.kind
    return UNet(config)


def make_part_graph(graph: GraphSpec, component: nn.Module) -> nn.Module:
    """The module of one graph of a diffusion component."""
    if isinstance(component, Autoencoder):
        return Encode(component) if graph.file_stem == "encode" else Decode(component)
    return component


def make_condition(tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Pictures in [-1, 1], whole timesteps and sizes, class labels; latents, states and noise are near normal."""
    if tensor.name == "image":
        return 2 * make_image(shape, random) - 1
    if tensor.name in ("timestep", "class_labels"):
        return random.integers(0, int(tensor.high), shape)
    if tensor.name == "aspect_ratio":
        return random.uniform(tensor.low, tensor.high, shape)
    if tensor.name in ("time_ids", "resolution"):
        return random.integers(0, TIMESTEPS // 8, shape) * 8
    return random.standard_normal(shape)


def describe_latents(config: VaeComponent) -> dict[str, Any]:
    """How latents of this autoencoder relate to pictures, and to what a denoiser sees."""
    return {
        "latents": {
            "channels": config.latent_channels,
            "downscale": config.downscale,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor,
        }
    }
