"""The block generator: embeddings and heads of the modes, and the decoder they share."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
from torch import nn

from specs.components.blocks import BlockDecoderComponent, ModeComponent, StructureComponent
from specs.families.blocks import list_modes
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.blocks import BlockDecoder, Mode, ReadElement, ReadStream, Structure
from specs.schema import Spec


@final
class BlockGenerationHandler(Handler):
    """`blocks.decoder`, `blocks.structure`, `blocks.text` and `blocks.image`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, BlockDecoderComponent):
                modules[name] = BlockDecoder(config)
            elif isinstance(config, StructureComponent):
                modules[name] = Structure(config)
            else:
                modules[name] = Mode(cast(ModeComponent, config))
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if isinstance(component, BlockDecoder):
            return ReadStream(component) if graph.file_stem == "prefill" else ReadElement(component)
        if graph.file_stem == "embed":
            return cast("Structure | Mode", component).embed
        return component if isinstance(component, Structure) else cast(Mode, component).head

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows, the first as long as can be; a cache holds zeros beyond its length."""
        if "lengths" not in inputs:
            return inputs
        most = inputs["past_keys_0"].shape[2] - 1 if graph.file_stem == "decode" else inputs["x"].shape[1]
        lengths = np.clip(np.ceil(inputs["lengths"] * most), 1, most)
        lengths[0] = most
        if graph.file_stem == "decode":
            filled_BS = np.arange(most + 1) < lengths[:, None]
            inputs |= {n: x * filled_BS[:, None, :, None] for n, x in inputs.items() if n.startswith("past_")}
        return inputs | {"lengths": lengths.astype(np.int64)}

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        decoder = cast(BlockDecoderComponent, spec.components[roles["decoder"]])
        return {
            "kind": "block-generation",
            "prefill": f"{roles['decoder']}.prefill",
            "decode": f"{roles['decoder']}.decode",
            "num_layers": decoder.num_layers,
            "structure_embed": f"{roles['structure']}.embed",
            "structure_head": f"{roles['structure']}.head",
            "modes": [
                {
                    "name": name,
                    "kind": mode.kind.partition(".")[2],
                    "embed": f"{name}.embed",
                    "head": f"{name}.head",
                    "vocab_size": mode.vocab_size,
                    "max_shape": list(mode.max_shape),
                }
                for name, mode in list_modes(spec.components).items()
            ],
            "max_cache": spec.dims["cache"].max,
            "tokenizer": describe_tokenizer(
                spec, roles["text"], vocab_size=list_modes(spec.components)[roles["text"]].vocab_size
            ),
        }
