"""Speech recognition by an encoder and a decoder: Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from specs.components import WhisperEncoderComponent
from specs.families.recognition import get_sides
from specs.graphs import GraphSpec, list_graphs, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.audio.whisper import Cross, Decode, Prefill, WhisperDecoder, WhisperEncoder
from specs.samples.files import check_lengths
from specs.samples.sounds import make_sound
from specs.schema import Spec, TensorSpec

_GRAPHS = {"cross": Cross, "prefill": Prefill, "decode": Decode}


@final
class SpeechRecognitionHandler(Handler):
    """`audio.whisper` and `text.whisper`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        roles = name_roles(spec)
        encoder, decoder = get_sides(spec.components, roles)
        made: dict[str, nn.Module] = {
            roles["encoder"]: WhisperEncoder(encoder),
            roles["decoder"]: WhisperDecoder(decoder),
        }
        return {name: made[name] for name in spec.components}

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if not isinstance(component, WhisperDecoder):
            return component
        return _GRAPHS[graph.file_stem](component)

    def make_tensor(
        self, spec: Spec, graph: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...], random: np.random.Generator
    ) -> NDArray[Any]:
        if tensor.name == "samples":
            config = spec.components[graph.component]
            assert isinstance(config, WhisperEncoderComponent)
            return make_sound(shape, random, sample_rate=config.sample_rate)
        return super().make_tensor(spec, graph, tensor, shape, random)  # the encoder ends in LayerNorm

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged rows: the first is as long as can be, the others 1 or more."""
        if "lengths" not in inputs:
            return inputs
        prefill = graph.file_stem == "prefill"
        most = inputs["token_ids"].shape[1] if prefill else inputs["past_keys_0"].shape[2] - 1
        lengths = np.clip(np.ceil(inputs["lengths"] * most), 1, most)
        lengths[0] = most
        return inputs | {"lengths": lengths.astype(np.int64)}

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        if graph.file_stem not in ("prefill", "decode"):
            return self.make_inputs(spec, graph, sizes=sizes, seed=seed)
        cross, prefill = _find_graphs(spec)
        sizes = {**sizes, "tokens": max(1, min(sizes["tokens"], sizes["cache"] - 1))}
        states = self.make_inputs(spec, cross, sizes=sizes, seed=seed)
        prompt = self.make_inputs(spec, prefill, sizes=sizes, seed=seed)
        return self._fill_state(graph, states | prompt, capacity=sizes["cache"])

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        """A file holds encoder states and prompts; keys and values are made from them."""
        if graph.file_stem not in ("prefill", "decode"):
            return graph.inputs
        cross, prefill = _find_graphs(spec)
        return (*cross.inputs, *prefill.inputs[:2])

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        if graph.file_stem not in ("prefill", "decode"):
            return arrays
        tokens = arrays["token_ids"].shape[1]
        check_lengths(Path(spec.calibration.source), arrays["lengths"], tokens=tokens)
        capacity = min(max(spec.dims["cache"].opt, tokens + 1), spec.dims["cache"].max)
        return self._fill_state(graph, arrays, capacity=capacity)

    def _fill_state(self, graph: GraphModule, given: Arrays, *, capacity: int) -> Arrays:
        """What the graph reads after `given` was heard and, for decode, read: the model's own keys and values."""
        assert isinstance(graph.module, Prefill | Decode)
        decoder = graph.module.decoder
        cross_names = [tensor.name for tensor in graph.inputs if tensor.name.startswith("cross_")]
        with torch.no_grad():
            states = torch.from_numpy(given["encoder_states"]).to(decoder.token_embedding.weight.dtype)
            cross = Cross(decoder)(states)
            named = dict(zip(cross_names, (tensor.float().numpy() for tensor in cross), strict=True))
            if graph.file_stem == "prefill":
                return {"token_ids": given["token_ids"], "lengths": given["lengths"], **named}
            ids = torch.from_numpy(given["token_ids"][:, : capacity - 1])
            lengths = torch.from_numpy(given["lengths"]).clamp(max=ids.shape[1])
            logits, *cache = Prefill(decoder)(ids, lengths, *cross)
        padding = (0, 0, 0, capacity - ids.shape[1])
        past_names = [tensor.name for tensor in graph.inputs if tensor.name.startswith("past_")]
        pasts = (nn.functional.pad(tensor, padding).float().numpy() for tensor in cache)
        token = logits.argmax(-1, keepdim=True).numpy()
        return {"token_ids": token, "lengths": lengths.numpy(), **dict(zip(past_names, pasts, strict=True)), **named}

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        encoder, decoder = get_sides(spec.components, roles)
        name = roles["decoder"]
        return {
            "kind": "speech-recognition",
            "encoder": roles["encoder"],
            "cross": f"{name}.cross",
            "prefill": f"{name}.prefill",
            "decode": f"{name}.decode",
            "num_layers": decoder.num_layers,
            "vocab_size": decoder.vocab_size,
            "num_samples": encoder.num_samples,
            "sample_rate": encoder.sample_rate,
            "start_token": decoder.start_token,
            "detect_language": decoder.detect_language,
            "prompt_tokens": list(decoder.prompt_tokens),
            "language_tokens": dict(decoder.language_tokens),
            "task_tokens": dict(decoder.task_tokens),
            "no_timestamps_token": decoder.no_timestamps_token,
            "end_tokens": list(decoder.end_tokens),
            "max_new_tokens": decoder.max_new_tokens,
            "suppress_tokens": list(decoder.suppress_tokens),
            "begin_suppress_tokens": list(decoder.begin_suppress_tokens),
            "tokenizer": describe_tokenizer(spec, name, vocab_size=0),  # ids are never bytes here
        }


def _find_graphs(spec: Spec) -> tuple[GraphSpec, GraphSpec]:
    """`cross` and `prefill`."""
    named = {graph.file_stem: graph for graph in list_graphs(spec)}
    return named["cross"], named["prefill"]
