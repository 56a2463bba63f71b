"""Text to video by latent diffusion: a text encoder, a transformer that a host drives step by step, and a decoder.

prompt -> text encoder -> states      noise -> transformer (each step: scheduler, on the host) -> latents
                                      latents -> decoder -> frames
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import ClipTextComponent
from specs.components.video.diffusion import VideoDecoderComponent, VideoTransformerComponent
from specs.errors import SpecError
from specs.families.base import Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.schema import Dim, Spec


@final
class TextToVideoFamily(Family):
    """`text.clip`, `video.dit`, `video.vae` and a scheduler."""

    kind = "text-to-video"
    title = "text to video"
    roles: ClassVar = {
        "text_encoder": ("text.clip",),
        "denoiser": ("video.dit",),
        "vae": ("video.vae",),
        "scheduler": ("diffusion.scheduler",),
    }
    dims: ClassVar = {"batch": Dim(min=1, opt=2, max=4)}
    architectures = ("transformer", "diffusion", "hybrid")
    objectives = ("diffusion",)

    def check(self, spec: Spec, roles: Roles) -> None:
        text = cast(ClipTextComponent, spec.components[roles["text_encoder"]])
        denoiser = cast(VideoTransformerComponent, spec.components[roles["denoiser"]])
        wanted = [("denoiser", "context_size", text.hidden_size, "text_encoder.hidden_size")]
        wanted += [
            ("vae", key, getattr(denoiser, key), f"denoiser.{key}")
            for key in ("latent_channels", "num_frames", "height", "width")
        ]
        for role, key, size, source in wanted:
            given = getattr(spec.components[roles[role]], key)
            if given != size:
                raise SpecError(
                    f"{roles[role]}.{key} {given} is not {source}",
                    where=f"components.{roles[role]}.{key}",
                    allowed=str(size),
                    fix="give both the same",
                )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        text = cast(ClipTextComponent, components[roles["text_encoder"]])
        denoiser = cast(VideoTransformerComponent, components[roles["denoiser"]])
        vae = cast(VideoDecoderComponent, components[roles["vae"]])
        states = make_float("encoder_states", "batch", text.context_length, text.hidden_size)
        sample = make_float("sample", "batch", *denoiser.latent_shape)
        timestep = make_float("timestep", "batch", low=0.0, high=1000.0)
        return (
            make_model_graph(
                roles["text_encoder"],
                (make_ids("token_ids", "batch", text.context_length, vocab_size=text.vocab_size),),
                (states,),
            ),
            make_model_graph(
                roles["denoiser"],
                (sample, timestep, states),
                (make_float("out_sample", "batch", *denoiser.latent_shape),),
            ),
            make_model_graph(
                roles["vae"],
                (make_float("latents", "batch", *denoiser.latent_shape),),
                (make_float("frames", "batch", 3, *vae.frame_shape),),
            ),
        )
