"""Text to music: text encoder, decoder of codes, codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from specs.components.audio.encodec import EncodecComponent
from specs.components.audio.musicgen import MusicgenComponent
from specs.components.text.t5 import T5Component
from specs.graphs import GraphSpec, list_graphs, name_roles
from specs.handlers.base import Arrays, GraphModule, Handler
from specs.handlers.shared.codecs import describe_codec, make_codec_graph
from specs.handlers.shared.tokenizers import describe_tokenizer
from specs.models.audio.encodec import Encodec
from specs.models.audio.musicgen import MusicgenDecode, MusicgenDecoder, MusicgenPrefill
from specs.models.text.t5 import T5Encoder
from specs.samples.texts import draw_length
from specs.schema import Spec, TensorSpec

_SEVERAL = 16  # frames


@final
class TextToAudioHandler(Handler):
    """`text.t5`, `audio.musicgen` and `audio.encodec_decoder`."""

    def make_components(self, spec: Spec) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {}
        for name, config in spec.components.items():
            if isinstance(config, T5Component):
                modules[name] = T5Encoder(config)
            elif isinstance(config, MusicgenComponent):
                longest = max(spec.dims[key].max for key in ("cache", "prompt_frames"))
                modules[name] = MusicgenDecoder(config, positions=longest)
            else:
                assert isinstance(config, EncodecComponent), config.kind
                modules[name] = Encodec(config)
        return modules

    def make_graph_module(self, graph: GraphSpec, component: nn.Module) -> nn.Module:
        if isinstance(component, MusicgenDecoder):
            return MusicgenPrefill(component) if graph.file_stem == "prefill" else MusicgenDecode(component)
        return component if isinstance(component, T5Encoder) else make_codec_graph(graph, component)

    def tie_inputs(self, graph: GraphSpec, inputs: Arrays) -> Arrays:
        """Ragged texts, the first as long as can be, the last row without one; a cache holds zeros beyond its end."""
        if graph.file_stem == "model":
            return inputs | {"lengths": _draw_lengths(inputs["lengths"], inputs["token_ids"].shape[1])}
        if "text_lengths" not in inputs:
            return inputs
        text = inputs["states"].shape[1] if graph.file_stem == "prefill" else inputs["cross_keys_0"].shape[2]
        text_lengths = _draw_lengths(inputs["text_lengths"], text)
        if len(text_lengths) > 1:
            text_lengths[-1] = 0
        inputs |= {"text_lengths": text_lengths}
        if graph.file_stem == "decode":
            lengths = _draw_lengths(inputs["lengths"], inputs["past_keys_0"].shape[2] - 1)
            inputs |= {"lengths": lengths}
            for start, sizes in (("past_", lengths), ("cross_", text_lengths)):
                inputs |= {name: _cut(x, sizes) for name, x in inputs.items() if name.startswith(start)}
        return inputs

    def name_sizes(self, spec: Spec, graph: GraphSpec, *, seed: int) -> dict[str, int]:
        """Several frames, though engines are tuned for a first one: a range must have seen others, and any text."""
        sizes = super().name_sizes(spec, graph, seed=seed)
        sizes["text_tokens"] = max(spec.dims["text_tokens"].min, draw_length(sizes["text_tokens"], seed=seed))
        return sizes | {"prompt_frames": max(sizes["prompt_frames"], min(_SEVERAL, spec.dims["prompt_frames"].max))}

    def make_realistic_inputs(self, spec: Spec, graph: GraphModule, *, sizes: Mapping[str, int], seed: int) -> Arrays:
        if not isinstance(graph.module, MusicgenDecode):
            return self.make_inputs(spec, graph, sizes=sizes, seed=seed)
        prefill = next(g for g in list_graphs(spec) if g.file_stem == "prefill")
        frames = max(1, min(sizes["prompt_frames"], sizes["cache"] - 1))
        prompt = self.make_inputs(spec, prefill, sizes={**sizes, "prompt_frames": frames}, seed=seed)
        return self._fill_cache(graph, prompt, capacity=sizes["cache"])

    def list_calibration_inputs(self, spec: Spec, graph: GraphModule) -> tuple[TensorSpec, ...]:
        """A file holds first frames and texts; what decode sees is made from them."""
        if not isinstance(graph.module, MusicgenDecode):
            return graph.inputs
        return next(g for g in list_graphs(spec) if g.file_stem == "prefill").inputs

    def finish_calibration(self, spec: Spec, graph: GraphModule, arrays: Arrays) -> Arrays:
        if not isinstance(graph.module, MusicgenDecode):
            return arrays
        capacity = max(spec.dims["cache"].opt, arrays["codes"].shape[2] + 1)
        return self._fill_cache(graph, arrays, capacity=min(capacity, spec.dims["cache"].max))

    def _fill_cache(self, graph: GraphModule, prompt: Arrays, *, capacity: int) -> Arrays:
        """Decode's inputs after `prompt` was read: the likeliest next codes, and the model's own keys and values."""
        assert isinstance(graph.module, MusicgenDecode)
        codes = torch.from_numpy(prompt["codes"][:, :, : capacity - 1])
        states, text_lengths = (torch.from_numpy(prompt[name]) for name in ("states", "text_lengths"))
        with torch.no_grad():
            logits, *pairs = MusicgenPrefill(graph.module.decoder)(codes, states, text_lengths)
        own = len(pairs) // 2
        padding = (0, 0, 0, capacity - codes.shape[2])
        tensors = [*(nn.functional.pad(tensor, padding) for tensor in pairs[:own]), *pairs[own:]]
        names = [tensor.name for tensor in graph.inputs[3:]]
        return {
            "codes": logits.argmax(-1, keepdim=True).numpy(),
            "lengths": np.full(len(codes), codes.shape[2]),
            "text_lengths": prompt["text_lengths"],
            **{name: tensor.float().numpy() for name, tensor in zip(names, tensors, strict=True)},
        }

    def describe_pipeline(self, spec: Spec) -> dict[str, Any]:
        roles = name_roles(spec)
        text, decoder = roles["text_encoder"], roles["decoder"]
        config = cast(MusicgenComponent, spec.components[decoder])
        vocab_size = cast(T5Component, spec.components[text]).vocab_size
        return {
            "kind": "text-to-audio",
            "text_encoder": text,
            "prefill": f"{decoder}.prefill",
            "decode": f"{decoder}.decode",
            "num_layers": config.num_layers,
            **describe_codec(roles["codec"], cast(EncodecComponent, spec.components[roles["codec"]])),
            "audio_channels": config.audio_channels,
            "num_codebooks": config.num_codebooks,
            "codebook_size": config.vocab_size,
            "guidance_scale": config.guidance_scale,
            "tokenizer": describe_tokenizer(spec, text, vocab_size=vocab_size),
            "text_vocab_size": vocab_size,
            "max_cache": spec.dims["cache"].max,
        }


def _draw_lengths(share: NDArray[Any], most: int) -> NDArray[np.int64]:
    """From shares in [0, 1): 1 to `most`, the first one `most`."""
    lengths: NDArray[np.int64] = np.minimum(most, np.maximum(1, np.ceil(share * most))).astype(np.int64)
    lengths[0] = most
    return lengths


def _cut(x_BHSD: NDArray[Any], lengths_B: NDArray[np.int64]) -> NDArray[Any]:
    """Zeros beyond each row's length."""
    filled_BS = np.arange(x_BHSD.shape[2]) < lengths_B[:, None]
    kept: NDArray[Any] = x_BHSD * filled_BS[:, None, :, None].astype(x_BHSD.dtype)
    return kept
