"""A decoder that reads more than text: pictures, sounds or films become tokens before or inside it.

    image [B, ...]   -> vision -> vision_resampler                     -> embeddings
    image [F, ...]   -> vision -> video_resampler, F frames together   -> embeddings
    samples [B, L]   -> audio  -> audio_resampler                      -> embeddings
    token ids, embeddings of all media of a row                        -> prefill;  decode

A model has one of these media or several. In a prompt one id of the vocabulary, the media token, stands for each of
their embeddings: so one graph reads prompts with all media, with some and with none.
"""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import (
    CausalComponent,
    Component,
    PerceiverComponent,
    ProjectorComponent,
    VisionTransformerComponent,
    WhisperEncoderComponent,
)
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_model_graph
from specs.families.generation import check_positions, list_decoder_graphs
from specs.families.pictures import make_picture_graph
from specs.schema import Dim, Spec, TensorSpec

#: The role of what makes a medium's embeddings -> the role of what looks or listens before it.
SOURCES = {"audio_resampler": "audio", "vision_resampler": "vision", "video_resampler": "vision"}


@final
class MediaToTextFamily(Family):
    """A tower for what is seen, an encoder for what is heard, what makes tokens of each, and a decoder."""

    kind = "media-to-text"
    title = "a decoder that reads pictures, films or sounds"
    roles: ClassVar = {
        "vision": ("vision.clip", "vision.siglip", "vision.vit"),
        "vision_resampler": ("fusion.perceiver", "fusion.projector"),
        "video_resampler": ("fusion.perceiver",),
        "audio": ("audio.whisper",),
        "audio_resampler": ("fusion.perceiver",),
        "decoder": ("text.decoder", "text.gpt2", "text.neox"),
    }
    optional = frozenset(roles) - {"decoder"}
    dims: ClassVar = {
        "batch": BATCH,
        "tokens": Dim(min=1, opt=256, max=1024),
        "media_tokens": Dim(min=1, opt=96, max=1024),
        "cache": Dim(min=16, opt=1024, max=2048),
    }
    objectives = ("autoregressive",)

    def can_play(self, role: str, component: Component) -> bool:
        """A tower's tokens are read, so it does not pool; a perceiver of frames makes a film, one without a picture."""
        if isinstance(component, VisionTransformerComponent) and component.resolved_pooling != "none":
            return False
        if isinstance(component, PerceiverComponent) and (component.num_frames is None) == (role == "video_resampler"):
            return False
        return super().can_play(role, component)

    def is_whole(self, roles: Roles) -> bool:
        """Some medium is read, and nothing looks or listens for nobody."""
        sources = {SOURCES[role] for role in SOURCES if role in roles}
        return bool(sources) and sources == {role for role in ("vision", "audio") if role in roles}

    def check(self, spec: Spec, roles: Roles) -> None:
        check_positions(spec, roles["decoder"], {**self.dims, **spec.dims})
        decoder = get_decoder(spec.components, roles)
        room = {**self.dims, **spec.dims}["media_tokens"].max
        for role in list_resamplers(roles):
            resampler = spec.components[roles[role]]
            tokens = count_tokens(spec.components, roles, role)
            if tokens > room:
                raise SpecError(
                    f"what '{roles[role]}' makes of one medium is more than a prompt can hold",
                    where="dims.media_tokens.max",
                    got=str(room),
                    allowed=f"{tokens} or more",
                    fix=f"media_tokens: {{max: {tokens}}}",
                )
            if isinstance(resampler, PerceiverComponent):
                width = make_features(spec.components, roles, role).shape[-1]
                _check_widths(roles, role, resampler, int(width), decoder)
            else:
                _check_projector(spec.components, roles, decoder)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        decoder = get_decoder(components, roles)
        encoders: dict[str, GraphSpec] = {}
        resamplers = []
        for role in list_resamplers(roles):
            name, features = roles[SOURCES[role]], make_features(components, roles, role)
            one = _make_features(components, roles, SOURCES[role])
            encoders[name] = _make_encoder_graph(name, components[name], one)
            made = make_float("embeddings", "batch", count_tokens(components, roles, role), decoder.hidden_size)
            resamplers.append(make_model_graph(roles[role], (features,), (made,)))
        given = make_float("media_embeddings", "batch", "media_tokens", decoder.hidden_size)
        text = list_decoder_graphs(decoder, roles["decoder"], given=(given,))
        return (*encoders.values(), *resamplers, *text)

    def count_parameters(self, components: Components, roles: Roles) -> dict[str, int]:
        counts = {name: one.count_parameters() for name, one in _without_projector(components).items()}
        for name, projector in _list_projectors(components):
            width, inner = _measure_projector(components, roles)
            counts[name] = (width + inner) * inner + 2 * inner * projector.bias
        return counts

    def count_macs(self, components: Components, roles: Roles, tokens: int) -> dict[str, int]:
        counts = {name: one.count_macs(tokens) for name, one in _without_projector(components).items()}
        for name, _ in _list_projectors(components):
            width, inner = _measure_projector(components, roles)
            counts[name] = count_tokens(components, roles, "vision_resampler") * (width + inner) * inner
        return counts


def list_resamplers(roles: Roles) -> tuple[str, ...]:
    """The roles that make embeddings here, in the order in which their media stand before a text."""
    return tuple(role for role in SOURCES if role in roles)


def get_decoder(components: Components, roles: Roles) -> CausalComponent:
    """What reads."""
    return cast(CausalComponent, components[roles["decoder"]])


def get_projector(components: Components, roles: Roles) -> ProjectorComponent | None:
    """The projector, where that is what makes tokens of a picture."""
    found = components[roles["vision_resampler"]] if "vision_resampler" in roles else None
    return found if isinstance(found, ProjectorComponent) else None


def find_media_token(components: Components, roles: Roles) -> int:
    """The id that stands for one embedding of a medium: a projector's own, else the last of the vocabulary."""
    projector = get_projector(components, roles)
    return projector.image_token if projector else get_decoder(components, roles).vocab_size - 1


def count_tokens(components: Components, roles: Roles, role: str) -> int:
    """Embeddings of one picture, film or sound, by the role of what makes them."""
    resampler = components[roles[role]]
    if isinstance(resampler, PerceiverComponent):
        return resampler.num_latents
    return int(_make_features(components, roles, "vision").shape[1])


def make_features(components: Components, roles: Roles, role: str) -> TensorSpec:
    """What a resampler reads: features [batch, places, width], or [batch, frames, places, width] of a film."""
    features = _make_features(components, roles, SOURCES[role])
    frames = getattr(components[roles[role]], "num_frames", None)
    if frames is None:
        return features
    return make_float("features", features.shape[0], frames, *features.shape[1:])


def _make_features(components: Components, roles: Roles, source: str) -> TensorSpec:
    """What a tower or an encoder makes of one picture, frame or sound; a projector chooses among a tower's layers."""
    encoder, projector = components[roles[source]], get_projector(components, roles)
    if isinstance(encoder, WhisperEncoderComponent):
        return make_float("features", "batch", encoder.source_positions, encoder.hidden_size)
    tower = cast(VisionTransformerComponent, encoder)
    if projector is None:
        return make_float("features", "batch", tower.num_patches, tower.hidden_size)
    width = tower.hidden_size * max(1, len(projector.feature_layers))
    return make_float("features", "batch", tower.num_tokens - projector.skip_tokens, width)


def _make_encoder_graph(name: str, encoder: Component, features: TensorSpec) -> GraphSpec:
    if isinstance(encoder, WhisperEncoderComponent):
        return make_model_graph(name, (make_float("samples", "batch", encoder.num_samples),), (features,))
    return make_picture_graph(name, cast(VisionTransformerComponent, encoder), features)


def _list_projectors(components: Components) -> list[tuple[str, ProjectorComponent]]:
    return [(name, one) for name, one in components.items() if isinstance(one, ProjectorComponent)]


def _without_projector(components: Components) -> dict[str, Component]:
    return {name: one for name, one in components.items() if not isinstance(one, ProjectorComponent)}


def _measure_projector(components: Components, roles: Roles) -> tuple[int, int]:
    """Width of what it reads, and of what it makes."""
    width = _make_features(components, roles, "vision").shape[2]
    return int(width), get_decoder(components, roles).hidden_size


def _check_widths(roles: Roles, role: str, config: PerceiverComponent, width: int, decoder: CausalComponent) -> None:
    for key, given, wanted, source in (
        ("input_size", config.input_size or config.hidden_size, width, f"{roles[SOURCES[role]]}.hidden_size"),
        ("hidden_size", config.hidden_size, decoder.hidden_size, f"{roles['decoder']}.hidden_size"),
    ):
        if given != wanted:
            raise SpecError(
                f"{roles[role]}.{key} {given} is not {source}",
                where=f"components.{roles[role]}.{key}",
                allowed=str(wanted),
                fix="give both the same",
            )


def _check_projector(components: Components, roles: Roles, decoder: CausalComponent) -> None:
    tower = cast(VisionTransformerComponent, components[roles["vision"]])
    projector = cast(ProjectorComponent, components[roles["vision_resampler"]])
    where = f"components.{roles['vision_resampler']}"
    if any(layer > tower.num_layers for layer in projector.feature_layers):
        raise SpecError(
            "the projector reads a layer that the tower has not",
            where=f"{where}.feature_layers",
            got=str(max(projector.feature_layers)),
            allowed=f"0 to {tower.num_layers}",
            fix="0 is what the first layer reads, num_layers what the last one leaves",
        )
    if projector.skip_tokens >= tower.num_tokens:
        raise SpecError(
            "the projector leaves every token of the tower away",
            where=f"{where}.skip_tokens",
            got=str(projector.skip_tokens),
            allowed=f"0 to {tower.num_tokens - 1}",
            fix="lower skip_tokens",
        )
    if projector.image_token >= decoder.vocab_size:
        raise SpecError(
            "the image token is outside the decoder's vocabulary",
            where=f"{where}.image_token",
            got=str(projector.image_token),
            allowed=f"0 to {decoder.vocab_size - 1}",
            fix="lower image_token, or raise the decoder's vocab_size",
        )
