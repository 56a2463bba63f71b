"""A language model that reads pictures and sounds as tokens before the text. Six graphs.

    image -> vision -> vision_resampler -> image tokens        each resampler: a fixed number of tokens
    samples -> audio -> audio_resampler -> audio tokens
    [audio tokens; image tokens; text] -> prefill, decode      what is not there is left out of the prompt

In a prompt the last id of the vocabulary stands for one token of a picture or sound, so that one graph reads prompts
with both, with one and with none.
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import CausalComponent, Component, VisionTransformerComponent, WhisperEncoderComponent
from specs.components.resampling import PerceiverComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.families.classification import make_image
from specs.families.generation import check_positions, list_decoder_graphs
from specs.schema import Dim, Spec


@final
class MultimodalLlmFamily(Family):
    """A vision tower, Whisper's encoder, a perceiver each, and a decoder."""

    kind = "multimodal-llm"
    title = "a decoder that reads pictures and sounds"
    roles: ClassVar = {
        "vision": ("vision.clip", "vision.siglip", "vision.vit"),
        "vision_resampler": ("fusion.perceiver",),
        "audio": ("audio.whisper",),
        "audio_resampler": ("fusion.perceiver",),
        "llm": ("text.decoder", "text.gpt2"),
    }
    dims: ClassVar = {
        "batch": BATCH,
        "tokens": Dim(min=1, opt=256, max=1024),
        "media_tokens": Dim(min=1, opt=96, max=512),
        "cache": Dim(min=16, opt=1024, max=2048),
    }
    objectives = ("autoregressive",)

    def can_play(self, role: str, component: Component) -> bool:
        pooled = isinstance(component, VisionTransformerComponent) and component.resolved_pooling != "none"
        return super().can_play(role, component) and not pooled

    def check(self, spec: Spec, roles: Roles) -> None:
        check_positions(spec, roles["llm"], {**self.dims, **spec.dims})
        llm = cast(CausalComponent, spec.components[roles["llm"]])
        for encoder, resampler in (("vision", "vision_resampler"), ("audio", "audio_resampler")):
            config = cast(PerceiverComponent, spec.components[roles[resampler]])
            width = getattr(spec.components[roles[encoder]], "hidden_size")  # noqa: B009 - of several classes
            for key, given, wanted, source in (
                ("input_size", config.input_size or config.hidden_size, width, f"{roles[encoder]}.hidden_size"),
                ("hidden_size", config.hidden_size, llm.hidden_size, f"{roles['llm']}.hidden_size"),
            ):
                if given != wanted:
                    raise SpecError(
                        f"{roles[resampler]}.{key} {given} is not {source}",
                        where=f"components.{roles[resampler]}.{key}",
                        allowed=str(wanted),
                        fix="give both the same",
                    )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        tower = cast(VisionTransformerComponent, components[roles["vision"]])
        audio = cast(WhisperEncoderComponent, components[roles["audio"]])
        llm = cast(CausalComponent, components[roles["llm"]])
        features = make_float("image_features", "batch", tower.num_patches, tower.hidden_size)
        states = make_float("audio_features", "batch", audio.source_positions, audio.hidden_size)
        samples = make_float("samples", "batch", audio.num_samples)
        graphs = [
            make_model_graph(roles["vision"], (make_image(tower),), (features,)),
            make_model_graph(roles["audio"], (samples,), (states,)),
        ]
        for role, source, name in (
            ("vision_resampler", features, "image_tokens"),
            ("audio_resampler", states, "audio_tokens"),
        ):
            config = cast(PerceiverComponent, components[roles[role]])
            made = make_float(name, "batch", config.num_latents, config.hidden_size)
            graphs.append(make_model_graph(roles[role], (source,), (made,)))
        given = make_float("media_embeddings", "batch", "media_tokens", llm.hidden_size)
        return (*graphs, *list_decoder_graphs(llm, roles["llm"], given=(given,)))
