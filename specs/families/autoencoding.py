"""Image autoencoders: two graphs over one set of weights, pictures to latents and back."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import VaeComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float
from specs.schema import Dim, Spec

#: Heights and widths: of latents, and of the pictures that belong to them.
LATENT_DIM = Dim(min=16, opt=64, max=128)
PICTURE_DIM = Dim(min=128, opt=512, max=1024)

_UPCAST = "force_upcast, these activations overflow float16"


@final
class ImageAutoencodingFamily(Family):
    """`diffusion.vae` with its encoder."""

    kind = "image-autoencoding"
    title = "an image autoencoder"
    roles: ClassVar = {"autoencoder": ("diffusion.vae",)}
    dims: ClassVar = {
        "batch": BATCH,
        "height": LATENT_DIM,
        "width": LATENT_DIM,
        "image_height": PICTURE_DIM,
        "image_width": PICTURE_DIM,
    }
    architectures = ("transformer", "diffusion", "cnn", "hybrid")
    objectives = ("diffusion",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["autoencoder"]
        config = cast(VaeComponent, components[name])
        return make_encode_graph(name, config), make_decode_graph(name, config)

    def check(self, spec: Spec, roles: Roles) -> None:
        config = cast(VaeComponent, spec.components[roles["autoencoder"]])
        check_dims(spec, ("height", "width"), 0)
        check_dims(spec, ("image_height", "image_width"), len(config.block_out_channels) - 1)
        if not config.encoder:
            raise SpecError(
                "an autoencoder on its own needs its encoder",
                where=f"components.{roles['autoencoder']}.encoder",
                fix="remove the key, or add the components of text to image",
            )


def check_dims(spec: Spec, names: tuple[str, ...], halvings: int) -> None:
    """Refuse a range of sizes whose smallest is a single position at the coarsest resolution.

    Tracing takes a size of 1 for a constant, so such a size must be the only one: min = max.

    Raises:
        SpecError: at `dims.<name>.min`.
    """
    smallest = 2 ** (halvings + 1)
    for name in names:
        dim = spec.dims.get(name)
        if dim is not None and dim.min < smallest and dim.min < dim.max:
            raise SpecError(
                f"{name} is halved {halvings} times, and its smallest size would end as a single position",
                where=f"dims.{name}.min",
                got=str(dim.min),
                allowed=f"{smallest} or more; or one size alone, min = max",
                fix=f"set dims.{name}.min to {smallest}",
            )


def make_encode_graph(name: str, config: VaeComponent) -> GraphSpec:
    """image in [-1, 1] -> mean and log variance of its latents."""
    latents = (config.latent_channels, "height", "width")
    return GraphSpec(
        name=f"{name}.encode",
        component=name,
        file_stem="encode",
        inputs=(make_float("image", "batch", config.in_channels, "image_height", "image_width"),),
        outputs=(make_float("mean", "batch", *latents), make_float("log_variance", "batch", *latents)),
        keep_float32=_list_kept(config),
    )


def make_decode_graph(name: str, config: VaeComponent) -> GraphSpec:
    """Unscaled latents -> image in [-1, 1]."""
    return GraphSpec(
        name=f"{name}.decode",
        component=name,
        file_stem="decode",
        inputs=(make_float("latents", "batch", config.latent_channels, "height", "width"),),
        outputs=(make_float("image", "batch", config.out_channels, "image_height", "image_width"),),
        keep_float32=_list_kept(config),
    )


def _list_kept(config: VaeComponent) -> tuple[tuple[str, str], ...]:
    return (("*", _UPCAST),) if config.force_upcast else ()
