"""Whisper: an encoder over 30 seconds of sound, and a decoder that writes.

    model.encoder.{conv1, conv2, embed_positions, layers.N.{self_attn, fc1, fc2}, layer_norm}
    model.decoder.{embed_tokens, embed_positions, layers.N.{self_attn, encoder_attn, fc1, fc2}, layer_norm} -> proj_out

What the decoder is told first comes from generation_config.json (from config.json where there is none), by the rules
of `WhisperForConditionalGeneration.generate` when a caller says nothing about language and task. Not taken over:
timestamps, beams and sampling, which are not part of the model; the transcript is the greedy one, without timestamps.
`scale_embedding` changes nothing in transformers' Whisper, and nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, take, take_linear, take_module
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.decoder import check_tied, require_causal
from exporters.checkpoints.parts.generation import require_plain_generation
from exporters.checkpoints.parts.sound import describe_speech, find_feature_extractor
from exporters.checkpoints.tokenizers.assets import describe_tokenizer
from exporters.checkpoints.tokenizers.languages import LANGUAGE_CODES
from specs.components import WhisperDecoderComponent, WhisperEncoderComponent
from specs.errors import CheckpointError
from specs.schema import Spec

#: What the library's config says where these keys are missing, which then is what it generates with.
_USUAL_TOKENS = {"eos_token_id": 50256, "begin_suppress_tokens": [220, 50256]}
_ATTENTION = {"query": "q_proj", "value": "v_proj", "out": "out_proj"}


@final
class WhisperImporter(Importer):
    """`WhisperForConditionalGeneration`."""

    title = "Whisper"
    model_types = ("whisper",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config, sound = folder.config, find_feature_extractor(folder)
        require_causal(config)
        shared = {
            "hidden_size": config.take("d_model", int, 384),
            "source_positions": config.take("max_source_positions", int, 1500),
            "activation": read_activation(config, "activation_function", "gelu"),
        }
        mels = config.take("num_mel_bins", int, 80)
        sound.require("feature_size", (mels,), mels)
        sound.require("dither", (0,), 0)
        sound.require("padding_value", (0,), 0)
        encoder = {
            "kind": "audio.whisper",
            **shared,
            **_take_sizes(config, "encoder"),
            "num_mels": mels,
            "sample_rate": sound.take("sampling_rate", int, 16000),
            "fft_length": sound.take("n_fft", int, 400),
            "hop_length": sound.take("hop_length", int, 160),
        }
        positions = config.take("max_target_positions", int, 448)
        decoder = {
            "kind": "text.whisper",
            **shared,
            **_take_sizes(config, "decoder"),
            "vocab_size": config.take("vocab_size", int, 51865),
            "max_positions": positions,
            "tie_embeddings": config.take("tie_word_embeddings", bool, True),
            **read_tokens(config, folder.find_config("generation_config.json")),
        }
        tokenizer = describe_tokenizer(folder)
        return {
            **describe_speech("autoregressive"),
            "components": {"encoder": encoder, "decoder": decoder},
            "dims": _make_dims(positions),
            **({"tokenizers": {"decoder": tokenizer}} if tokenizer else {}),
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        encoder = cast(WhisperEncoderComponent, spec.components["encoder"])
        decoder = cast(WhisperDecoderComponent, spec.components["decoder"])
        prefix = folder.tensors.find_prefix("encoder.conv1.weight", ("model.", ""))
        ours, theirs = "encoder", f"{prefix}encoder"
        recipes = {f"{ours}.position_embedding": take(f"{theirs}.embed_positions.weight")}
        recipes |= take_linear(f"{ours}.conv1", f"{theirs}.conv1") | take_linear(f"{ours}.conv2", f"{theirs}.conv2")
        recipes |= _map_layers(ours, theirs, encoder.num_layers, {"attention": "self_attn"})
        ours, theirs = "decoder", f"{prefix}decoder"
        recipes |= take_module(f"{ours}.token_embedding", f"{theirs}.embed_tokens", "weight")
        recipes |= take_module(f"{ours}.position_embedding", f"{theirs}.embed_positions", "weight")
        recipes |= _map_layers(ours, theirs, decoder.num_layers, {"attention": "self_attn", "cross": "encoder_attn"})
        if not decoder.tie_embeddings:
            return recipes | take_linear("decoder.head", "proj_out", bias=False)
        check_tied(folder.tensors, f"{theirs}.embed_tokens.weight", "proj_out.weight")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        tied = cast(WhisperDecoderComponent, spec.components["decoder"]).tie_embeddings
        return {"proj_out.weight": "tied to the embedding, and equal to it"} if tied else {}


def _take_sizes(config: Config, side: str) -> dict[str, int]:
    return {
        "num_layers": config.take(f"{side}_layers", int, 4),
        "num_heads": config.take(f"{side}_attention_heads", int, 6),
        "mlp_size": config.take(f"{side}_ffn_dim", int, 1536),
    }


def _make_dims(positions: int) -> dict[str, dict[str, int]]:
    tokens = max(1, positions // 2)
    return {
        "tokens": {"min": 1, "opt": min(4, tokens), "max": tokens},
        "cache": {"min": min(8, positions), "opt": tokens, "max": positions},
    }


def _map_layers(ours: str, theirs: str, count: int, attentions: Mapping[str, str]) -> dict[str, Recipe]:
    """Attentions with the norms before them, the MLP with its own, and the side's last norm."""
    recipes = take_linear(f"{ours}.output_norm", f"{theirs}.layer_norm")
    for index in range(count):
        mine, yours = f"{ours}.layers.{index}", f"{theirs}.layers.{index}"
        for name, attention in attentions.items():
            recipes |= take_linear(f"{mine}.{name}_norm", f"{yours}.{attention}_layer_norm")
            recipes |= take_linear(f"{mine}.{name}.key", f"{yours}.{attention}.k_proj", bias=False)
            for part, leaf in _ATTENTION.items():
                recipes |= take_linear(f"{mine}.{name}.{part}", f"{yours}.{attention}.{leaf}")
        recipes |= take_linear(f"{mine}.mlp_norm", f"{yours}.final_layer_norm")
        recipes |= take_linear(f"{mine}.mlp.up", f"{yours}.fc1") | take_linear(f"{mine}.mlp.down", f"{yours}.fc2")
    return recipes


def read_tokens(config: Config, generation: Config) -> dict[str, Any]:
    """What the decoder is told first, what ends a text, and what is never said."""
    source = generation if generation.data else Config({**_USUAL_TOKENS, **config.data}, config.where)
    require_plain_generation(source, {"return_timestamps": (False,)})
    vocab_size = config.take("vocab_size", int, 51865)
    start = source.take("decoder_start_token_id", int, config.take("decoder_start_token_id", int, 50257))
    ends = source.data.get("eos_token_id", config.data.get("eos_token_id"))
    languages = _take_ids(source, "lang_to_id", vocab_size)
    tasks = _take_ids(source, "task_to_id", vocab_size)
    last = source.take("no_timestamps_token_id", int, -1)
    prompt = _list_prompt(config, source, languages, tasks, None if last < 0 else last)
    detect = prompt[:1] == [None]
    tokens: dict[str, Any] = {
        "start_token": start,
        "detect_language": detect,
        "prompt_tokens": [token for token in prompt if token is not None],
        "language_tokens": languages,
        "task_tokens": tasks,
        "end_tokens": _list_ids(ends if isinstance(ends, list) else [ends], vocab_size),
        "suppress_tokens": _list_ids(source.take("suppress_tokens", list, []), vocab_size),
        "begin_suppress_tokens": _list_ids(source.take("begin_suppress_tokens", list, []), vocab_size),
    }
    most = source.take_first(("max_new_tokens", "max_length"), int, 0)
    if most > 0:
        tokens["max_new_tokens"] = most
    return tokens if last < 0 else tokens | {"no_timestamps_token": last}


def _list_prompt(
    config: Config, source: Config, languages: Mapping[str, int], tasks: Mapping[str, int], last: int | None
) -> list[int | None]:
    """The tokens after the first, as `generate` makes them; None first stands for a language that is detected."""
    language, task = source.take("language", str, ""), source.take("task", str, "")
    prompt: list[int | None] = []
    if not language and not task:
        forced = source.take("forced_decoder_ids", list, []) or config.take("forced_decoder_ids", list, [])
        if not all(isinstance(pair, list) and len(pair) == 2 and _is_forced(pair[1]) for pair in forced):
            raise CheckpointError(
                "'forced_decoder_ids' is no list of places and tokens",
                where=source.where,
                got=str(forced)[:120],
                fix="correct it: [[1, TOKEN], [2, TOKEN], ...]",
            )
        prompt = [token for place, (index, token) in enumerate(forced, 1) if index == place]
        if len(prompt) != len(forced):
            raise CheckpointError(
                "'forced_decoder_ids' leaves places out",
                where=source.where,
                got=str(forced)[:120],
                fix="number the places 1, 2, ...",
            )
    unknown = not prompt or prompt[0] is None
    if language:
        prompt[:1] = [_find_language(source, languages, language)]
    elif languages and unknown:
        prompt[:1] = [None]
    if task or (language and tasks):
        wanted = task or "transcribe"
        if wanted not in tasks:
            raise CheckpointError(
                f"the checkpoint has no task '{wanted}'",
                where=source.where,
                allowed=", ".join(tasks),
                fix="correct 'task' in generation_config.json, or remove it",
            )
        prompt.append(tasks[wanted])
    if last is not None and prompt[-1:] != [last]:
        prompt.append(last)
    detected = prompt[:1] == [None] and bool(languages)
    return [None] * detected + [token for token in prompt if token is not None]


def _find_language(source: Config, languages: Mapping[str, int], language: str) -> int:
    name = language.lower()
    for token in (name, f"<|{LANGUAGE_CODES.get(name, name)}|>"):
        if token in languages:
            return languages[token]
    raise CheckpointError(
        f"the checkpoint's language '{language}' is not among its 'lang_to_id'",
        where=source.where,
        allowed=", ".join(languages)[:200],
        fix="correct 'language' in generation_config.json, or remove it: then it is detected",
    )


def _take_ids(source: Config, key: str, vocab_size: int) -> dict[str, int]:
    return {name: token for name, token in source.take_config(key).data.items() if _is_id(token, vocab_size)}


def _list_ids(values: list[Any], vocab_size: int) -> list[int]:
    """Ids inside the vocabulary: small models inherit lists from large ones, and what cannot be said needs no ban."""
    return [value for value in values if _is_id(value, vocab_size)]


def _is_forced(token: object) -> bool:
    """None leaves the place to what is heard."""
    return token is None or (type(token) is int and token >= 0)


def _is_id(value: object, vocab_size: int) -> bool:
    return type(value) is int and 0 <= value < vocab_size
