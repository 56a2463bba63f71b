"""A talking avatar: a picture, a voice, and the frames of both."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components.avatar import AppearanceComponent, MotionComponent, RendererComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.models.avatar import Appearance, Motion, Renderer
from specs.samples.pictures import make_image
from specs.schema import Spec, TensorSpec


@final
class AvatarHandler(Handler):
    """`avatar.appearance`, `avatar.motion` and `avatar.renderer`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, AppearanceComponent):
                modules[name] = Appearance(config)
            elif isinstance(config, MotionComponent):
                modules[name] = Motion(config)
            else:
                modules[name] = Renderer(cast(RendererComponent, config))
        return modules

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "image":
            return make_image(shape, random)
        if tensor.name in ("samples", "past_heard"):
            return make_voice(shape, random)
        if tensor.name.endswith("keypoints"):
            return random.uniform(-0.8, 0.8, shape)
        return random.standard_normal(shape)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        appearance = cast(AppearanceComponent, spec.components[roles["appearance"]])
        motion = cast(MotionComponent, spec.components[roles["motion"]])
        size = appearance.image_size
        return {
            "kind": "avatar",
            **roles,
            "image": {"height": size, "width": size, "channels": 3},
            "sample_rate_hz": motion.mel.sample_rate,
            "frames_per_second": motion.frames_per_second,
            "num_layers": motion.num_layers,
        }


def make_voice(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    """Samples [B, L] in [-1, 1]: a few harmonics of a voice's pitch, and breath."""
    batch, length = shape
    pitch = random.uniform(0.01, 0.1, (batch, 1, 1))
    harmonic = np.arange(1, 6)[:, None]
    waves = np.sin(pitch * harmonic * np.arange(length) + random.uniform(0, 6, (batch, 5, 1))) / harmonic
    voice: NDArray[Any] = 0.2 * waves.sum(1) + 0.02 * random.standard_normal(shape)
    return voice
