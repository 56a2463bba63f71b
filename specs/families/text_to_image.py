"""Text to image by latent diffusion: text encoders, a U-Net that a host drives step by step, and a decoder.

    prompt -> text encoders -> states            noise -> U-Net, refiner (each step: scheduler, on the host) -> latents
                                                 latents -> decoder -> picture

The autoencoder's encoder is a graph too, where a spec has it: a host that begins with a picture needs it.

The U-Net's added condition says which kind it is: without one, text states are the last layer's, normalised (Stable
Diffusion 1 and 2); with `text_time`, they are the penultimate layers' of all encoders side by side, and the last
encoder's pooled text goes to the U-Net as well (SDXL).
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import ClipTextComponent, UNetComponent, VaeComponent
from specs.errors import SpecError
from specs.families.autoencoding import (
    LATENT_DIM,
    PICTURE_DIM,
    check_dims,
    make_decode_graph,
    make_encode_graph,
)
from specs.families.base import Components, Family, GraphSpec, Roles, make_float, make_ids
from specs.families.denoising import make_unet_graph
from specs.schema import Dim, Spec

ENCODERS = ("text_encoder", "text_encoder_2")
#: Height and width of the original, of the crop's corner, and of the target; a refiner's end in a score instead.
BASE_NUMBERS, REFINER_NUMBERS = 6, 5


@final
class TextToImageFamily(Family):
    """One or two `text.clip`, `diffusion.unet`, perhaps a second one as refiner, `diffusion.vae`, a scheduler."""

    kind = "text-to-image"
    title = "text to image"
    roles: ClassVar = {
        "text_encoder": ("text.clip",),
        "text_encoder_2": ("text.clip",),
        "unet": ("diffusion.unet",),
        "refiner": ("diffusion.unet",),
        "vae": ("diffusion.vae",),
        "scheduler": ("diffusion.scheduler",),
    }
    optional = frozenset({"text_encoder_2", "refiner"})
    dims: ClassVar = {
        "batch": Dim(min=1, opt=2, max=8),
        "height": LATENT_DIM,
        "width": LATENT_DIM,
        "image_height": PICTURE_DIM,
        "image_width": PICTURE_DIM,
    }
    architectures = ("transformer", "diffusion", "cnn", "hybrid")
    objectives = ("diffusion",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        unet = cast(UNetComponent, components[roles["unet"]])
        encoders = [roles[role] for role in ENCODERS if role in roles]
        context = cast(ClipTextComponent, components[encoders[0]]).context_length
        graphs = [
            _make_text_graph(
                name,
                cast(ClipTextComponent, components[name]),
                penultimate=unet.added_condition == "text_time",
                pooled=unet.added_condition == "text_time" and name == encoders[-1],
            )
            for name in encoders
        ]
        denoisers = [
            make_unet_graph(roles[role], cast(UNetComponent, components[roles[role]]), tokens=context)
            for role in ("unet", "refiner")
            if role in roles
        ]
        vae = cast(VaeComponent, components[roles["vae"]])
        encode = (make_encode_graph(roles["vae"], vae),) if vae.encoder else ()
        return (*graphs, *denoisers, *encode, make_decode_graph(roles["vae"], vae))

    def check(self, spec: Spec, roles: Roles) -> None:
        encoders = {role: cast(ClipTextComponent, spec.components[roles[role]]) for role in ENCODERS if role in roles}
        last = list(encoders.values())[-1]
        width = sum(encoder.hidden_size for encoder in encoders.values())
        self._check_unet(spec, roles["unet"], width, last, numbers=(BASE_NUMBERS,))
        if "refiner" in roles:
            numbers = (REFINER_NUMBERS, BASE_NUMBERS)
            self._check_unet(spec, roles["refiner"], last.hidden_size, last, numbers=numbers)
        if len({encoder.context_length for encoder in encoders.values()}) > 1:
            raise SpecError(
                "the text encoders read texts of different lengths",
                where=f"components.{roles['text_encoder_2']}.context_length",
                got=", ".join(str(encoder.context_length) for encoder in encoders.values()),
                fix="make them equal",
            )
        self._check_vae(spec, roles)

    def _check_unet(
        self, spec: Spec, name: str, width: int, last: ClipTextComponent, *, numbers: tuple[int, ...]
    ) -> None:
        unet = cast(UNetComponent, spec.components[name])
        pairs = {
            "encoder_size" if unet.encoder_size else "cross_attention_size": (unet.context_size, width),
            "in_channels": (unet.in_channels, unet.out_channels),
        }
        if unet.added_condition == "text_time":
            pairs["added_text_size"] = (unet.added_text_size or 0, last.feature_size)
        for key, (got, wanted) in pairs.items():
            if got != wanted:
                raise SpecError(
                    f"{key} does not fit the other components",
                    where=f"components.{name}.{key}",
                    got=str(got),
                    allowed=f"{wanted}, by the text encoders and the latents",
                    fix="make them equal",
                )
        if unet.added_condition == "text_time" and unet.added_time_count not in numbers:
            raise SpecError(
                "the host has other numbers for the U-Net",
                where=f"components.{name}.added_time_count",
                got=str(unet.added_time_count),
                allowed=" or ".join(map(str, numbers)),
                fix="6: original size, crop, target size; 5 for a refiner: original size, crop, score",
            )
        if unet.num_classes:
            raise SpecError(
                "a text-to-image host has no class labels", where=f"components.{name}.num_classes", fix="remove the key"
            )

    def _check_vae(self, spec: Spec, roles: Roles) -> None:
        vae = cast(VaeComponent, spec.components[roles["vae"]])
        unet = cast(UNetComponent, spec.components[roles["unet"]])
        if vae.latent_channels != unet.in_channels:
            raise SpecError(
                "the latents of the U-Net and of the autoencoder differ",
                where=f"components.{roles['vae']}.latent_channels",
                got=str(vae.latent_channels),
                allowed=f"{unet.in_channels}, as {roles['unet']} has",
                fix="make them equal",
            )
        halvings = max(
            len(cast(UNetComponent, spec.components[roles[role]]).block_out_channels) - 1
            for role in ("unet", "refiner")
            if role in roles
        )
        check_dims(spec, ("height", "width"), halvings)
        if vae.encoder:
            check_dims(spec, ("image_height", "image_width"), len(vae.block_out_channels) - 1)


def _make_text_graph(name: str, config: ClipTextComponent, *, penultimate: bool, pooled: bool) -> GraphSpec:
    states = make_float("encoder_states", "batch", config.context_length, config.hidden_size)
    embeds = (make_float("text_embeds", "batch", config.feature_size),) if pooled else ()
    return GraphSpec(
        name=name,
        component=name,
        file_stem="penultimate" if penultimate else "model",
        inputs=(make_ids("token_ids", "batch", config.context_length, vocab_size=config.vocab_size),),
        outputs=(states, *embeds),
    )
