"""Denoisers on their own: one step of a diffusion, without what makes its conditions or drives its loop."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import UNetComponent
from specs.families.autoencoding import LATENT_DIM, check_dims
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.schema import Dim, Spec

#: Timesteps that schedulers of today count.
TIMESTEPS = 1000

_UPCAST = "upcast_attention: scores of this model leave the range of float16, as its own config says"


@final
class ImageDenoisingFamily(Family):
    """`diffusion.unet`."""

    kind = "image-denoising"
    title = "a denoiser"
    roles: ClassVar = {"denoiser": ("diffusion.unet",)}
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
        return (make_unet_graph(name, cast(UNetComponent, components[name]), tokens="tokens"),)

    def check(self, spec: Spec, roles: Roles) -> None:
        config = cast(UNetComponent, spec.components[roles["denoiser"]])
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
    return graph.keep("*.core", _UPCAST) if config.upcast_attention else graph
