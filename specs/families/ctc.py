"""Speech recognition by one encoder and connectionist temporal classification: one graph."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components import Wav2Vec2Component
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_lengths, make_model_graph
from specs.schema import Dim, Spec

_SILENCE = (
    "silent frames are small beside the loudest, no norm lifts them between these, and one range a tensor loses them"
)


@final
class SpeechCtcFamily(Family):
    """`audio.wav2vec2`."""

    kind = "speech-ctc"
    title = "an encoder of sound that spells"
    roles: ClassVar = {"encoder": ("audio.wav2vec2",)}
    dims: ClassVar = {"batch": BATCH, "samples": Dim(min=1600, opt=160_000, max=480_000)}
    objectives = ("ctc",)

    def check(self, spec: Spec, roles: Roles) -> None:
        config = get_encoder(spec.components, roles)
        shortest = {**self.dims, **spec.dims}["samples"].min
        needed = config.smallest_input + config.total_stride
        if shortest < needed:
            raise SpecError(
                "dims.samples.min is shorter than two frames of the strided convolutions",
                where="dims.samples.min",
                got=str(shortest),
                allowed=f"{needed} or more",
                fix="raise dims.samples.min",
            )

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        config = get_encoder(components, roles)
        samples = make_float("samples", "batch", "samples")
        logits = make_float("logits", "batch", "frames", config.vocab_size)
        graph = make_model_graph(roles["encoder"], (samples, make_lengths()), (logits,))
        return (graph.leave("features.*", reason=_SILENCE) if config.feature_norm == "group" else graph,)


def get_encoder(components: Components, roles: Roles) -> Wav2Vec2Component:
    """The one component."""
    return cast(Wav2Vec2Component, components[roles["encoder"]])
