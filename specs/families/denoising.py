"""Denoisers on their own: one step of a diffusion, without what makes its conditions or drives its loop."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import DitComponent, UNetComponent
from specs.errors import SpecError
from specs.families.autoencoding import LATENT_DIM, check_dims
from specs.families.base import (
    BATCH,
    Components,
    Family,
    GraphSpec,
    Roles,
    make_float,
    make_ids,
    make_lengths,
    make_model_graph,
)
from specs.schema import Dim, Spec

#: Timesteps that schedulers of today count.
TIMESTEPS = 1000

#: As NVIDIA's ModelOpt quantises SDXL: they cost next to nothing, and their rounding reaches every layer.
_SENSITIVE = ("*time_embedding*", "*added_embedding*", "*time_projection*", "*shortcut*")
_SENSITIVE_REASON = "a condition or a shortcut: its rounding reaches every layer behind it"

_UPCAST = "upcast_attention, the scores overflow float16"


@final
class ImageDenoisingFamily(Family):
    """`diffusion.unet` or `diffusion.dit`."""

    kind = "image-denoising"
    title = "a denoiser"
    roles: ClassVar = {"denoiser": ("diffusion.unet", "diffusion.dit")}
    dims: ClassVar = {
        "batch": BATCH,
        "height": LATENT_DIM,
        "width": LATENT_DIM,
        "tokens": Dim(min=1, opt=77, max=512),
    }
    architectures = ("transformer", "diffusion", "cnn", "hybrid")
    objectives = ("diffusion",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["denoiser"]
        config = components[name]
        if isinstance(config, DitComponent):
            return (make_dit_graph(name, config),)
        return (make_unet_graph(name, cast(UNetComponent, config), tokens="tokens"),)

    def check(self, spec: Spec, roles: Roles) -> None:
        config = spec.components[roles["denoiser"]]
        if isinstance(config, DitComponent):
            _check_fixed(spec, config)
            return
        config = cast(UNetComponent, config)
        check_dims(spec, ("height", "width"), len(config.block_out_channels) - 1)


def make_unet_graph(name: str, config: UNetComponent, *, tokens: int | str) -> GraphSpec:
    """Noisy latents, the timestep and its conditions -> what the model was trained to predict."""
    inputs = [
        make_float("sample", "batch", config.in_channels, "height", "width"),
        make_float("timestep", "batch", low=0, high=TIMESTEPS),
        make_float("encoder_states", "batch", tokens, config.context_size),
    ]
    if config.added_text_size and config.added_time_count:
        inputs.append(make_float("text_embeds", "batch", config.added_text_size))
        inputs.append(make_float("time_ids", "batch", config.added_time_count, low=0, high=TIMESTEPS))
    if config.num_classes:
        inputs.append(make_ids("class_labels", "batch", vocab_size=config.num_classes))
    graph = make_model_graph(
        name, tuple(inputs), (make_float("out_sample", "batch", config.out_channels, "height", "width"),)
    )
    graph = graph.leave(*_SENSITIVE, reason=_SENSITIVE_REASON)
    return graph.keep("*.core", _UPCAST) if config.upcast_attention else graph


def make_dit_graph(name: str, config: DitComponent) -> GraphSpec:
    """Noisy latents, the timestep, a text and how much of it counts -> noise, and the variance where it is learned."""
    inputs = [
        make_float("sample", "batch", config.in_channels, "height", "width"),
        make_float("timestep", "batch", low=0, high=TIMESTEPS),
        make_float("encoder_states", "batch", "tokens", config.context_size),
        make_lengths(),
    ]
    if config.size_conditions:
        inputs.append(make_float("resolution", "batch", 2, low=0, high=TIMESTEPS))
        inputs.append(make_float("aspect_ratio", "batch", 1, low=0.25, high=4))
    graph = make_model_graph(
        name, tuple(inputs), (make_float("out_sample", "batch", config.out_channels, "height", "width"),)
    )
    return graph.keep("*.core", _UPCAST) if config.upcast_attention else graph


def _check_fixed(spec: Spec, config: DitComponent) -> None:
    for name in ("height", "width"):
        dim = spec.dims.get(name)
        if dim is None or (dim.min == dim.max and dim.min % config.patch_size == 0):
            continue
        raise SpecError(
            f"{name} of a diffusion transformer is one size, of whole patches: its position table is made for it",
            where=f"dims.{name}.{'max' if dim.min < dim.max else 'min'}",
            got=f"{dim.min} to {dim.max}",
            allowed=f"min = opt = max, a multiple of patch_size {config.patch_size}",
            fix=f"--dim {name}={dim.opt}:{dim.opt}:{dim.opt}; export once for each size",
        )
