"""A small model of three modalities with any strategy, its exported fusion graph, and the torch model without some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from exporters.lower import lower
from exporters.trace import choose_sizes, trace
from specs.components import MultimodalFusionComponent
from specs.families.multimodal_fusion import list_streams
from specs.graphs import name_roles
from specs.handlers import GraphModule, get_handler
from specs.models.fusion.multimodal import MultimodalFusion
from specs.parsing.parse import parse_spec
from specs.schema import Spec

#: Options of every strategy, at sizes that hurt: odd heads, tokens of different counts, widths that differ.
STRATEGIES = {
    "early": "num_layers: 2, num_heads: 3, temperature: 0.7, export_weights: true",
    "middle": "num_layers: 3, num_heads: 3, exchange_layers: [1, 3], temperature: 1.3, export_weights: true",
    "late": "num_classes: 5",
    "attention": "num_classes: 5, temperature: 0.2, export_weights: true",
}
NAMES = ("picture", "words", "motion")

TEXT = """
name: three
modality: {inputs: [image, text, sensor], outputs: [embedding]}
objective: contrastive
components:
  picture:
    {kind: vision.vit, image_size: 16, patch_size: 8, hidden_size: 24, num_layers: 1, num_heads: 2, pooling: none}
  words: {kind: text.clip, vocab_size: 300, context_length: 7, hidden_size: 20, num_layers: 1, num_heads: 2}
  motion:
    {kind: sensor.series, num_channels: 3, patch_size: 4, hidden_size: 16, num_layers: 1, num_latents: 2, num_heads: 2}
  fusion: {kind: fusion.multimodal, strategy: STRATEGY, hidden_size: 18, OPTIONS}
dims: {batch: {min: 1, opt: 2, max: 8}, steps: {min: 1, opt: 24, max: 64}}
"""


def make_spec(strategy: str, options: str | None = None) -> Spec:
    chosen = STRATEGIES.get(strategy, "") if options is None else options
    text = TEXT.replace("STRATEGY", strategy).replace("OPTIONS", chosen).replace(", }", "}")
    if "num_classes" in chosen:
        text = text.replace("objective: contrastive", "objective: classification").replace("embedding", "label")
    return parse_spec(text, source="three.yaml")


def build_graph(spec: Spec, name: str) -> GraphModule:
    return next(graph for graph in get_handler(spec).build(spec) if graph.name == name)


def make_feed(spec: Spec, graph: GraphModule, presence: Sequence[Sequence[bool]], seed: int = 0) -> dict[str, Any]:
    """Inputs of the fusion graph with these rows of `presence`."""
    sizes = {name: dim.opt for name, dim in spec.dims.items()} | {"batch": len(presence)}
    feed = get_handler(spec).make_inputs(spec, graph, sizes=sizes, seed=seed)
    return {**feed, "presence": np.array(presence)}


def spoil_missing(feed: dict[str, Any], value: float) -> dict[str, Any]:
    """The same, with `value` in all of a modality's tensors in rows that lack it, and behind a row's length."""
    spoiled = {name: array.copy() for name, array in feed.items()}
    for column, name in enumerate(NAMES):
        tokens = spoiled[f"{name}_tokens"]
        if f"{name}_lengths" in spoiled:
            places = np.arange(tokens.shape[1])
            tokens[places >= spoiled[f"{name}_lengths"][:, None]] = value
        tokens[~feed["presence"][:, column]] = value
    return spoiled


def run_without(spec: Spec, module: MultimodalFusion, feed: dict[str, Any], row: int) -> list[np.ndarray[Any, Any]]:
    """One row by the torch model that never had the modalities which are missing in it: the same weights, no mask."""
    kept = [m for m in range(len(NAMES)) if feed["presence"][row, m]]
    config = cast(MultimodalFusionComponent, spec.components["fusion"])
    streams = list_streams(spec.components, name_roles(spec))
    smaller = MultimodalFusion(config, [streams[m] for m in kept])
    smaller.load_state_dict(_cut_state(module, kept, config))
    tensors = [
        torch.from_numpy(feed[name][row : row + 1])
        for m in kept
        for name in (f"{NAMES[m]}_tokens", f"{NAMES[m]}_lengths")
        if name in feed
    ]
    with torch.inference_mode():
        outputs = smaller.to(module.modality_embedding.dtype)(*tensors, torch.ones(1, len(kept), dtype=torch.bool))
    return [value.numpy()[0] for value in outputs]


def _cut_state(module: MultimodalFusion, kept: Sequence[int], config: MultimodalFusionComponent) -> dict[str, Any]:
    """Parameters of the modalities `kept`, renumbered."""
    numbers = {str(old): str(new) for new, old in enumerate(kept)}
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        parts = name.split(".")
        at = 1 if parts[0] == "projections" else 2 if name.startswith("strategy.exchanges") else None
        if config.strategy == "middle" and name.startswith("strategy.layers"):
            at = 2
        if at is not None:
            if parts[at] not in numbers:
                continue
            parts[at] = numbers[parts[at]]
        if name == "modality_embedding":
            value = value[list(kept)]
        if name == "strategy.join.weight":
            width = config.hidden_size
            value = torch.cat([value[:, m * width : (m + 1) * width] for m in kept], dim=1)
        state[".".join(parts)] = value
    return state


def export_graph(spec: Spec, graph: GraphModule, folder: Path) -> onnxruntime.InferenceSession:
    """The portable graph of one component in ONNX Runtime."""
    sizes = choose_sizes(spec.dims, near=3)
    program = trace(graph, spec.dims, get_handler(spec).make_inputs(spec, graph, sizes=sizes, seed=0))
    path = folder / f"{graph.name}.onnx"
    ir.save(lower(program, graph), path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def get_fusion(graph: GraphModule) -> MultimodalFusion:
    module: nn.Module = graph.module
    assert isinstance(module, MultimodalFusion)
    return module
