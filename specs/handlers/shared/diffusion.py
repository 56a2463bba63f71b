"""What the handlers of autoencoders, denoisers and whole pipelines share: parts, their inputs, their latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import Component, DitComponent, UNetComponent, VaeComponent
from specs.families.denoising import TIMESTEPS
from specs.graphs import GraphSpec
from specs.models.diffusion.autoencoder import Autoencoder, Decode, Encode
from specs.models.diffusion.dit import Dit
from specs.models.diffusion.unet import UNet
from specs.samples.pictures import make_image
from specs.schema import TensorSpec


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
