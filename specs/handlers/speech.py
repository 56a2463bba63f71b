"""Text to speech: VITS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
from torch import nn

from specs.components.audio.vits import VitsTextComponent
from specs.families.speech import get_parts
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.audio.hifigan import Hifigan
from specs.models.audio.vits import PlainDurations, StochasticDurations, VitsTextEncoder
from specs.models.audio.vits_flow import VitsFlow
from specs.schema import Spec


@final
class TextToSpeechHandler(Handler):
    """`text.vits`, `audio.vits_durations`, `audio.vits_flow`, `audio.hifigan`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        roles = name_roles(spec)
        parts = get_parts(spec.components, roles)
        make: dict[str, Callable[[], nn.Module]] = {
            roles["text_encoder"]: lambda: VitsTextEncoder(parts.text),
            roles["durations"]: lambda: (
                StochasticDurations(parts.durations) if parts.durations.stochastic else PlainDurations(parts.durations)
            ),
            roles["flow"]: lambda: VitsFlow(parts.flow),
            roles["vocoder"]: lambda: Hifigan(parts.vocoder),
        }
        return {name: make[name]() for name in spec.components}

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows: the first is as long as can be, the others at least half of that."""
        if "lengths" not in inputs:
            return inputs
        first = graph.inputs[0]
        axis = next(axis for axis, size in enumerate(first.shape) if size in ("tokens", "frames"))
        longest = inputs[first.name].shape[axis]
        lengths = np.ceil((0.5 + inputs["lengths"] / 2) * longest)
        lengths[0] = longest
        return inputs | {"lengths": lengths.astype(np.int64)}

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        parts = get_parts(spec.components, roles)
        return {
            "kind": "text-to-speech",
            **{role: roles[role] for role in ("text_encoder", "durations", "flow", "vocoder")},
            "stochastic": parts.durations.stochastic,
            "num_speakers": parts.text.num_speakers,
            "latent_size": parts.text.latent_size,
            "vocab_size": parts.text.vocab_size,
            "duration_noise_scale": parts.durations.noise_scale,
            "noise_scale": parts.flow.noise_scale,
            "speaking_rate": parts.durations.speaking_rate,
            "sample_rate_hz": parts.vocoder.sample_rate_hz,
            "hop_length": parts.vocoder.hop_length,
            "tokenizer": _describe_tokenizer(spec, roles["text_encoder"], parts.text),
        }


def _describe_tokenizer(spec: Spec, name: str, config: VitsTextComponent) -> dict[str, Any]:
    if not config.characters:
        return describe_tokenizer(spec, name, vocab_size=config.vocab_size)
    keys = {"characters", "add_blank", "unknown", "special_tokens", "normalise", "romanised", "language"}
    return {"kind": "characters", **config.model_dump(mode="json", include=keys)}
