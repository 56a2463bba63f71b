"""Text encoders: one graph, token ids in, features out."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from specs.components import BertComponent, ClipTextComponent, T5Component, TextEncoderComponent
from specs.graphs import GraphSpec, name_roles
from specs.handlers.base import Arrays, Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.text.bert import Bert
from specs.models.text.clip import ClipText, ClipTextEmbedding
from specs.models.text.encoder import TextEmbedding
from specs.models.text.t5 import T5Encoder
from specs.samples.texts import draw_length
from specs.schema import Spec, TensorSpec


@final
class TextEmbeddingHandler(Handler):
    """`text.bert`, `text.t5`, `text.clip`, `text.siglip`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, BertComponent):
                modules[name] = Bert(config)
            elif isinstance(config, T5Component):
                modules[name] = T5Encoder(config)
            else:
                assert isinstance(config, ClipTextComponent), config.kind
                modules[name] = ClipText(config)
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if isinstance(component, ClipText):
            return ClipTextEmbedding(component)
        assert isinstance(component, Bert | T5Encoder)
        return TextEmbedding(component, component.embedding_head)

    def name_sizes(self, spec: Spec, graph: GraphSpec, *, seed: int) -> dict[str, int]:
        """Texts of every length, where the graph takes one."""
        sizes = super().name_sizes(spec, graph, seed=seed)
        ragged = any(tensor.name == "lengths" for tensor in graph.inputs)
        return sizes | (
            {"tokens": max(spec.dims["tokens"].min, draw_length(sizes["tokens"], seed=seed))} if ragged else {}
        )

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "lengths":
            return random.random(shape)  # a share of what is possible; `tie_inputs` knows how much that is
        config = spec.components[name_roles(spec)["encoder"]]
        ids = random.integers(int(tensor.low), int(tensor.high), shape)
        if isinstance(config, ClipTextComponent) and config.kind == "text.clip":
            end = random.integers(shape[1] // 2, shape[1], shape[0])
            ids[np.arange(shape[0]), end] = config.vocab_size - 1 if config.end_token is None else config.end_token
        return ids

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows: the first is as long as can be, the others 1 or more."""
        if "lengths" not in inputs:
            return inputs
        tokens = inputs["token_ids"].shape[1]
        lengths = np.maximum(1, np.ceil(inputs["lengths"] * tokens))
        lengths[0] = tokens
        return inputs | {"lengths": lengths.astype(np.int64)}

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        name = name_roles(spec)["encoder"]
        config = spec.components[name]
        assert isinstance(config, TextEncoderComponent | ClipTextComponent)
        tokenizer = describe_tokenizer(spec, name, vocab_size=config.vocab_size)
        if isinstance(config, ClipTextComponent):
            tokenizer |= {"end_of_text": config.vocab_size - 1} if tokenizer["kind"] != "tokenizers" else {}
            tokenizer |= {"pad_to": config.context_length} if config.kind == "text.siglip" else {}
        return {
            "kind": "text-embedding",
            "graph": name,
            "tokenizer": tokenizer,
            "max_tokens": spec.dims["tokens"].max,
            "vocab_size": config.vocab_size,
        }
