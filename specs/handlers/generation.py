"""Text decoders: prefill reads a prompt, decode one token against the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

import numpy as np
import torch
from torch import nn

from specs.components import CausalComponent
from specs.graphs import GraphSpec, list_graphs, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.shared.decoders import make_decoder
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.text.causal import CausalModel, Decode, Prefill
from specs.samples.files import check_lengths
from specs.samples.texts import draw_length
from specs.schema import Spec, TensorSpec


@final
class TextGenerationHandler(Handler):
    """`text.decoder`, `text.gpt2` and `text.neox`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        return {name: make_decoder(config) for name, config in spec.components.items()}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        assert isinstance(component, CausalModel)
        return Prefill(component) if graph.file_stem == "prefill" else Decode(component)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows: the first is as long as can be, the others 1 or more; a cache holds zeros beyond its length."""
        share = inputs["lengths"]
        if graph.file_stem == "prefill":
            tokens = inputs["token_ids"].shape[1]
            lengths = np.maximum(1, np.ceil(share * tokens))
            lengths[0] = tokens
        else:
            capacity = inputs["past_keys_0"].shape[2]
            lengths = np.minimum(capacity - 1, np.maximum(1, np.ceil(share * (capacity - 1))))
            lengths[0] = capacity - 1
            filled_BS = np.arange(capacity) < lengths[:, None]
            inputs |= {n: x * filled_BS[:, None, :, None] for n, x in inputs.items() if n.startswith("past_")}
        return inputs | {"lengths": lengths.astype(np.int64)}

    def name_sizes(self, spec: Spec, graph: GraphSpec, *, seed: int) -> dict[str, int]:
        """Decode follows prompts of every length: over few keys attention's mean is louder than over many."""
        sizes = super().name_sizes(spec, graph, seed=seed)
        if graph.file_stem != "decode":
            return sizes
        return sizes | {"tokens": draw_length(_prompt_size(sizes), seed=seed)}

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        if graph.file_stem == "prefill":
            return self.make_inputs(spec, graph, sizes=sizes, seed=seed)
        prefill = next(g for g in list_graphs(spec) if g.file_stem == "prefill")
        prompt = self.make_inputs(spec, prefill, sizes={**sizes, "tokens": _prompt_size(sizes)}, seed=seed)
        return self._fill_cache(graph, prompt, capacity=sizes["cache"])

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        """A file holds prompts; what decode sees is made from them."""
        return next(g for g in list_graphs(spec) if g.file_stem == "prefill").inputs

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        tokens = arrays["token_ids"].shape[1]
        check_lengths(Path(spec.calibration.source), arrays["lengths"], tokens=tokens)
        if graph.file_stem == "prefill":
            return arrays
        capacity = max(spec.dims["cache"].opt, tokens + 1)
        return self._fill_cache(graph, arrays, capacity=min(capacity, spec.dims["cache"].max))

    def _fill_cache(self, graph: GraphModule, prompt: Arrays, *, capacity: int) -> Arrays:
        """Decode's inputs after `prompt` was read: the likeliest next token, and the model's own keys and values."""
        assert isinstance(graph.module, Decode)
        prefill = Prefill(graph.module.decoder)
        ids = torch.from_numpy(prompt["token_ids"][:, : capacity - 1])
        lengths = torch.from_numpy(prompt["lengths"]).clamp(max=ids.shape[1])
        with torch.no_grad():
            logits, *cache = prefill(ids, lengths)
        names = [tensor.name for tensor in graph.inputs[2:]]
        padding = (0, 0, 0, capacity - ids.shape[1])
        pasts = [nn.functional.pad(tensor, padding).float().numpy() for tensor in cache]
        token = logits.argmax(-1, keepdim=True).numpy()
        return {"token_ids": token, "lengths": lengths.numpy(), **dict(zip(names, pasts, strict=True))}

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["decoder"]
        config = cast(CausalComponent, spec.components[name])
        return {
            "kind": "text-generation",
            "prefill": f"{name}.prefill",
            "decode": f"{name}.decode",
            "num_layers": config.num_layers,
            "tokenizer": describe_tokenizer(spec, name, vocab_size=config.vocab_size),
            "vocab_size": config.vocab_size,
            "max_cache": spec.dims["cache"].max,
        }


def _prompt_size(sizes: Mapping[str, int]) -> int:
    return max(1, min(sizes["tokens"], sizes["cache"] - 1))
