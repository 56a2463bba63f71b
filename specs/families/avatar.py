"""A real-time avatar: three graphs. One looks at a picture once; two run for every frame of video.

picture --appearance--> volume, keypoints
a frame's samples, state, keypoints --motion--> moved keypoints, state
volume, keypoints, moved keypoints --renderer--> frame
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components.avatar import AppearanceComponent, MotionComponent, RendererComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.schema import Spec, TensorSpec

_SHARED = ("image_size", "volume_channels", "volume_depth", "num_keypoints")


@final
class AvatarFamily(Family):
    """`avatar.appearance`, `avatar.motion` and `avatar.renderer`."""

    kind = "avatar"
    title = "a talking avatar"
    roles: ClassVar = {
        "appearance": ("avatar.appearance",),
        "motion": ("avatar.motion",),
        "renderer": ("avatar.renderer",),
    }
    dims: ClassVar = {"batch": BATCH}
    architectures = ("transformer", "cnn", "hybrid")
    objectives = ("autoregressive",)

    def check(self, spec: Spec, roles: Roles) -> None:
        appearance, renderer = spec.components[roles["appearance"]], spec.components[roles["renderer"]]
        pairs = [(renderer, roles["renderer"], key) for key in _SHARED]
        pairs.append((spec.components[roles["motion"]], roles["motion"], "num_keypoints"))
        for component, name, key in pairs:
            if getattr(component, key) != getattr(appearance, key):
                raise SpecError(
                    f"{name}.{key} {getattr(component, key)} is not {roles['appearance']}.{key}",
                    where=f"components.{name}.{key}",
                    allowed=str(getattr(appearance, key)),
                    fix="give both the same",
                )
        halvings = cast(AppearanceComponent, appearance).num_halvings
        doublings = cast(RendererComponent, renderer).num_doublings
        if halvings != doublings:
            raise SpecError(
                f"{roles['renderer']} doubles the volume {doublings} times, {roles['appearance']} halves it {halvings}",
                where=f"components.{roles['renderer']}.num_doublings",
                allowed=str(halvings),
                fix="give both the same",
            )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        appearance = cast(AppearanceComponent, components[roles["appearance"]])
        motion = cast(MotionComponent, components[roles["motion"]])
        side, points = appearance.volume_size, appearance.num_keypoints
        volume = make_float("volume", "batch", appearance.volume_channels, appearance.volume_depth, side, side)
        keypoints = make_float("keypoints", "batch", points, 3)
        moved = make_float("moved_keypoints", "batch", points, 3)
        picture = ("batch", 3, appearance.image_size, appearance.image_size)
        graphs = {
            roles["appearance"]: ((make_float("image", *picture, low=0.0),), (volume, keypoints)),
            roles["motion"]: (
                (make_float("samples", "batch", motion.samples_per_frame), keypoints, *list_state(motion, "past_")),
                (moved, *list_state(motion, "")),
            ),
            roles["renderer"]: ((volume, keypoints, moved), (make_float("frame", *picture, low=0.0),)),
        }
        return tuple(make_model_graph(name, *graphs[name]) for name in components)


def list_state(motion: MotionComponent, prefix: str) -> tuple[TensorSpec, ...]:
    """What a call hands to the next: the last samples, and each layer's last inputs."""
    return (
        make_float(f"{prefix}heard", "batch", motion.past_samples),
        *(
            make_float(f"{prefix}layer_{layer}", "batch", motion.hidden_size, motion.look_back(layer))
            for layer in range(motion.num_layers)
        ),
    )
