"""Text encoders, a U-Net, an autoencoder's decoder, and what a host needs to drive them."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import ClipTextComponent, SchedulerComponent, UNetComponent, VaeComponent
from specs.families.text_to_image import ENCODERS
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Handler
from specs.handlers.shared.diffusion import describe_latents, make_condition, make_part, make_part_graph
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.text.clip import ClipText
from specs.models.text.condition import LastStates, PenultimateStates, PenultimateStatesAndEmbedding
from specs.samples.texts import make_text
from specs.schema import Spec, TensorSpec


@final
class TextToImageHandler(Handler):
    """`text.clip`, `diffusion.unet`, `diffusion.vae`, `diffusion.scheduler`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, ClipTextComponent):
                modules[name] = ClipText(config)
            elif not isinstance(config, SchedulerComponent):  # the host's
                modules[name] = make_part(config)
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if not isinstance(component, ClipText):
            return make_part_graph(graph, component)
        if graph.file_stem != "penultimate":
            return LastStates(component)
        return PenultimateStatesAndEmbedding(component) if len(graph.outputs) > 1 else PenultimateStates(component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "token_ids":
            return make_text(shape, int(tensor.high), random)
        return make_condition(tensor, shape, random)

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        unet = cast(UNetComponent, spec.components[roles["unet"]])
        scheduler = cast(SchedulerComponent, spec.components[roles["scheduler"]])
        return {
            "kind": "text-to-image",
            "text_encoders": [
                {"graph": roles[role], "tokenizer": _describe_prompts(spec, roles[role])}
                for role in ENCODERS
                if role in roles
            ],
            "denoiser": roles["unet"],
            **({"refiner": roles["refiner"]} if "refiner" in roles else {}),
            "decoder": f"{roles['vae']}.decode",
            "added_condition": unet.added_condition,
            **describe_latents(cast(VaeComponent, spec.components[roles["vae"]])),
            "size": {"height": spec.dims["height"].opt, "width": spec.dims["width"].opt},
            "scheduler": scheduler.model_dump(exclude={"kind"}, exclude_none=True),
        }


def _describe_prompts(spec: Spec, name: str) -> dict[str, Any]:
    """How a prompt becomes a row of ids: its text, one end of text, and padding."""
    config = cast(ClipTextComponent, spec.components[name])
    tokenizer = spec.tokenizers.get(name)
    ends = tokenizer.end_tokens if tokenizer else ()
    end = config.end_token if config.end_token is not None else config.vocab_size - 1
    return {
        **describe_tokenizer(spec, name, vocab_size=config.vocab_size),
        "context_length": config.context_length,
        "end_of_text": ends[0] if ends else end,
    }
