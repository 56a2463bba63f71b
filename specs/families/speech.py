"""Text to speech: VITS. Four graphs, and between the second and the third the host lets each token last its time.

token_ids -> text_encoder -> states, prior;  states, noise -> durations -> log durations
prior, repeated for as many frames as each token lasts, and noise -> flow -> latents -> vocoder -> samples
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast, final

from specs.components.audio.hifigan import HifiganComponent
from specs.components.audio.vits import VitsDurationComponent, VitsFlowComponent, VitsTextComponent
from specs.errors import SpecError
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
from specs.schema import Dim, Spec, TensorSpec

_SPLINE_REASON = "a spline's pieces are chosen by comparison, and durations are exponentials of what it gives"


@dataclass(frozen=True, kw_only=True)
class SpeechParts:
    """The components by role."""

    text: VitsTextComponent
    durations: VitsDurationComponent
    flow: VitsFlowComponent
    vocoder: HifiganComponent


@final
class TextToSpeechFamily(Family):
    """`text.vits`, `audio.vits_durations`, `audio.vits_flow` and `audio.hifigan`."""

    kind = "text-to-speech"
    title = "a text encoder, durations, a flow and a vocoder"
    roles: ClassVar = {
        "text_encoder": ("text.vits",),
        "durations": ("audio.vits_durations",),
        "flow": ("audio.vits_flow",),
        "vocoder": ("audio.hifigan",),
    }
    dims: ClassVar = {
        "batch": BATCH,
        "tokens": Dim(min=1, opt=128, max=1024),
        "frames": Dim(min=1, opt=512, max=2048),
    }
    objectives = ("reconstruction",)

    def check(self, spec: Spec, roles: Roles) -> None:
        parts = get_parts(spec.components, roles)
        text, speaker = parts.text, parts.text.speaker_size
        facts = (
            ("durations", "hidden_size", parts.durations.hidden_size, text.hidden_size),
            ("flow", "latent_size", parts.flow.latent_size, text.latent_size),
            ("vocoder", "input_size", parts.vocoder.input_size, text.latent_size),
            ("durations", "speaker_size", parts.durations.speaker_size, speaker),
            ("flow", "speaker_size", parts.flow.speaker_size, speaker),
            ("vocoder", "speaker_size", parts.vocoder.speaker_size, speaker),
        )
        for role, key, got, wanted in facts:
            if got != wanted:
                raise SpecError(
                    f"{roles[role]}.{key} {got} does not go with '{roles['text_encoder']}'",
                    where=f"components.{roles[role]}.{key}",
                    allowed=f"{wanted}",
                    fix="give both the same",
                )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        parts = get_parts(components, roles)
        width, latent = parts.text.hidden_size, parts.text.latent_size
        who = () if parts.text.speaker_size is None else (make_float("speaker", "batch", parts.text.speaker_size),)
        ids = make_ids("token_ids", "batch", "tokens", vocab_size=parts.text.vocab_size)
        asked = (make_ids("speaker_ids", "batch", vocab_size=parts.text.num_speakers),) if who else ()
        states = make_float("states", "batch", "tokens", width)
        prior = (make_float(name, "batch", "tokens", latent) for name in ("prior_means", "prior_log_variances"))
        noise = (make_float("noise", "batch", 2, "tokens"),) if parts.durations.stochastic else ()
        drawn, latents = (make_float(name, "batch", latent, "frames") for name in ("prior_latents", "latents"))
        graphs = {
            "text_encoder": ((ids, make_lengths(), *asked), (states, *prior, *who)),
            "durations": ((states, make_lengths(), *noise, *who), (make_float("log_durations", "batch", "tokens"),)),
            "flow": ((drawn, make_lengths(), *who), (latents,)),
            "vocoder": ((latents, *who), (make_float("samples", "batch", "length"),)),
        }
        return tuple(_make_graph(role, roles[role], *graphs[role]) for role in self.roles)


def _make_graph(role: str, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    graph = make_model_graph(name, inputs, outputs)
    if role != "durations":
        return graph
    return graph.keep("flows*", _SPLINE_REASON).leave("flows*", reason=_SPLINE_REASON)


def get_parts(components: Components, roles: Roles) -> SpeechParts:
    """The four components."""
    return SpeechParts(
        text=cast(VitsTextComponent, components[roles["text_encoder"]]),
        durations=cast(VitsDurationComponent, components[roles["durations"]]),
        flow=cast(VitsFlowComponent, components[roles["flow"]]),
        vocoder=cast(HifiganComponent, components[roles["vocoder"]]),
    )
