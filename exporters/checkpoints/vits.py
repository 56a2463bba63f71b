"""VITS, and MMS-TTS, which is VITS for a language each.

text_encoder.{embed_tokens, encoder.layers.N.{attention, feed_forward, layer_norm, final_layer_norm}, project};
duration_predictor; flow.flows.N.{conv_pre, wavenet, conv_post}; decoder.{conv_pre, upsampler, resblocks, conv_post};
embed_speaker.  The posterior encoder and a half of the duration predictor are for training alone.

The convolutions of the WaveNets are stored as directions and lengths; those of the decoder may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, reshape, stack_linear, take_linear, take_module
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.files.weight_norm import take_normed
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.tokenizers.added import list_special, spell_token
from specs.components import HifiganComponent, VitsDurationComponent, VitsFlowComponent, VitsTextComponent
from specs.errors import CheckpointError
from specs.schema import Spec

_TRAINING = "used in training only"
_TOKENIZER = "tokenizer_config.json"


@final
class VitsImporter(Importer):
    """`VitsModel`."""

    title = "VITS and MMS-TTS"
    model_types = ("vits",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        speaker = _take_speaker(config)
        hidden, latent = config.take("hidden_size", int, 192), config.take("flow_size", int, 192)
        stochastic = config.take("use_stochastic_duration_prediction", bool, True)
        if stochastic:
            config.require("depth_separable_channels", (2,), 2)
        return {
            "modality": {"inputs": ["text"], "outputs": ["audio"]},
            "architecture": "hybrid",
            "objective": "reconstruction",
            "components": {
                "text_encoder": {**_describe_text(config, hidden, latent), **speaker, **_describe_characters(folder)},
                "durations": {**_describe_durations(config, hidden, stochastic), **_without_count(speaker)},
                "flow": {**_describe_flow(config, hidden, latent), **_without_count(speaker)},
                "vocoder": {**_describe_vocoder(config, latent), **_without_count(speaker)},
            },
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        tensors = folder.tensors
        prefix = tensors.find_prefix("text_encoder.embed_tokens.weight", ("", "vits."))
        parts = spec.components
        return {
            **_map_text(cast(VitsTextComponent, parts["text_encoder"]), prefix),
            **_map_durations(cast(VitsDurationComponent, parts["durations"]), f"{prefix}duration_predictor"),
            **_map_flow(cast(VitsFlowComponent, parts["flow"]), tensors, f"{prefix}flow.flows"),
            **_map_vocoder(cast(HifiganComponent, parts["vocoder"]), tensors, f"{prefix}decoder"),
        }

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        unused = {"*posterior_encoder.*": _TRAINING, "*duration_predictor.post_*": _TRAINING}
        if cast(VitsDurationComponent, spec.components["durations"]).num_flows:
            unused["*duration_predictor.flows.1.*"] = _TRAINING
        if cast(VitsTextComponent, spec.components["text_encoder"]).speaker_size is None:
            one = "a condition on the speaker, in a model of one"
            unused |= {"*.cond.*": one, "*.cond_layer.*": one}
        return unused


def _take_speaker(config: Config) -> dict[str, int]:
    """Nothing for a model of one speaker, whatever size its vectors would have."""
    speakers, size = config.take("num_speakers", int, 1), config.take("speaker_embedding_size", int, 0)
    if speakers <= 1:
        return {}
    if size < 1:
        raise CheckpointError(
            "the model has several speakers and nothing that tells them apart",
            where=config.where,
            got=f"num_speakers {speakers}, speaker_embedding_size {size}",
            fix=USE_ONNX,
        )
    return {"num_speakers": speakers, "speaker_size": size}


def _without_count(speaker: Mapping[str, int]) -> dict[str, int]:
    return {key: value for key, value in speaker.items() if key == "speaker_size"}


def _describe_text(config: Config, hidden: int, latent: int) -> dict[str, Any]:
    return {
        "kind": "text.vits",
        "vocab_size": config.take("vocab_size", int, 38),
        "hidden_size": hidden,
        "num_layers": config.take("num_hidden_layers", int, 6),
        "num_heads": config.take("num_attention_heads", int, 2),
        "mlp_size": config.take("ffn_dim", int, 768),
        "mlp_kernel": config.take("ffn_kernel_size", int, 3),
        "window_size": config.take("window_size", int, 4),
        "attention_bias": config.take("use_bias", bool, True),
        "activation": read_activation(config, "hidden_act", "relu"),
        "layer_norm_eps": config.take("layer_norm_eps", float, 1e-5),
        "latent_size": latent,
    }


def _describe_characters(folder: Folder) -> dict[str, Any]:
    """What each id spells, where the folder says it and the text needs nothing that is not here.

    A tokenizer that makes phonemes of the text needs a phonemizer: such a model is given ids.
    """
    ids, tokenizer = folder.find_config("vocab.json").data, folder.find_config(_TOKENIZER)
    if not ids or tokenizer.take("phonemize", bool, True):
        return {}
    size = folder.config.take_count("vocab_size", 38)
    wrong = next((item for item in ids.items() if type(item[1]) is not int or not 0 <= item[1] < size), None)
    if wrong is not None or len(set(ids.values())) < len(ids):
        raise CheckpointError(
            "vocab.json does not map characters to ids of this model",
            where=str(folder.path),
            got=repr(wrong or "an id twice")[:120],
            allowed=f"0 to {size - 1}, each once",
            fix="copy or download the checkpoint again",
        )
    named = {**folder.find_config("special_tokens_map.json").data, **tokenizer.data}
    special = list_special(
        {"pad_token": "<pad>", "unk_token": "<unk>", **named}, folder.find_config("added_tokens.json")
    )
    spelled = {token: character for character, token in ids.items()}
    return {
        "characters": [spelled.get(token, "") for token in range(max(spelled) + 1)],
        "add_blank": tokenizer.take("add_blank", bool, True),
        "unknown": spell_token(named.get("unk_token")) or "<unk>",
        "special_tokens": [token for token in special if token in ids],
        "normalise": tokenizer.take("normalize", bool, True),
        "romanised": tokenizer.take("is_uroman", bool, False),
        "language": tokenizer.take("language", str, ""),
    }


def _describe_durations(config: Config, hidden: int, stochastic: bool) -> dict[str, Any]:
    shared = {
        "kind": "audio.vits_durations",
        "stochastic": stochastic,
        "hidden_size": hidden,
        "kernel_size": config.take("duration_predictor_kernel_size", int, 3),
        "noise_scale": config.take("noise_scale_duration", float, 0.8),
        "speaking_rate": config.take("speaking_rate", float, 1.0),
    }
    if not stochastic:
        filters = config.take("duration_predictor_filter_channels", int, 256)
        return {**shared, "filter_size": filters, "layer_norm_eps": config.take("layer_norm_eps", float, 1e-5)}
    return {
        **shared,
        "num_flows": config.take("duration_predictor_num_flows", int, 4),
        "num_layers": config.take("depth_separable_num_layers", int, 3),
        "num_bins": config.take("duration_predictor_flow_bins", int, 10),
        "tail_bound": config.take("duration_predictor_tail_bound", float, 5.0),
    }


def _describe_flow(config: Config, hidden: int, latent: int) -> dict[str, Any]:
    return {
        "kind": "audio.vits_flow",
        "latent_size": latent,
        "hidden_size": hidden,
        "num_flows": config.take("prior_encoder_num_flows", int, 4),
        "num_layers": config.take("prior_encoder_num_wavenet_layers", int, 4),
        "kernel_size": config.take("wavenet_kernel_size", int, 5),
        "dilation_rate": config.take("wavenet_dilation_rate", int, 1),
        "noise_scale": config.take("noise_scale", float, 0.667),
    }


def _describe_vocoder(config: Config, latent: int) -> dict[str, Any]:
    return {
        "kind": "audio.hifigan",
        "input_size": latent,
        "initial_size": config.take("upsample_initial_channel", int, 512),
        "upsample_rates": config.take("upsample_rates", list, [8, 8, 2, 2]),
        "upsample_kernels": config.take("upsample_kernel_sizes", list, [16, 16, 4, 4]),
        "residual_kernels": config.take("resblock_kernel_sizes", list, [3, 7, 11]),
        "residual_dilations": config.take("resblock_dilation_sizes", list, [[1, 3, 5]] * 3),
        "leaky_slope": config.take("leaky_relu_slope", float, 0.1),
        "sample_rate_hz": config.take("sampling_rate", int, 16000),
    }


def _map_text(config: VitsTextComponent, prefix: str) -> dict[str, Recipe]:
    before, distances = f"{prefix}text_encoder.", 2 * config.window_size + 1
    recipes = take_module("text_encoder.token_embedding", f"{before}embed_tokens", "weight")
    recipes |= take_linear("text_encoder.prior", f"{before}project")
    if config.speaker_size is not None:
        recipes |= take_module("text_encoder.speaker_embedding", f"{prefix}embed_speaker", "weight")
    for index in range(config.num_layers):
        ours, theirs = f"text_encoder.layers.{index}", f"{before}encoder.layers.{index}"
        attention, bias = f"{theirs}.attention", config.attention_bias
        parts = tuple(f"{attention}.{part}_proj" for part in "qkv")
        recipes |= stack_linear(f"{ours}.attention.qkv", parts, bias=bias)
        recipes |= take_linear(f"{ours}.attention.out", f"{attention}.out_proj", bias=bias)
        for name, leaf in (("keys", "k"), ("values", "v")):
            width = config.hidden_size // config.num_heads
            recipes[f"{ours}.attention.distance_{name}"] = reshape(f"{attention}.emb_rel_{leaf}", distances, width)
        recipes |= take_linear(f"{ours}.attention_norm", f"{theirs}.layer_norm")
        recipes |= take_linear(f"{ours}.mlp.up", f"{theirs}.feed_forward.conv_1")
        recipes |= take_linear(f"{ours}.mlp.down", f"{theirs}.feed_forward.conv_2")
        recipes |= take_linear(f"{ours}.mlp_norm", f"{theirs}.final_layer_norm")
    return recipes


def _map_durations(config: VitsDurationComponent, theirs: str) -> dict[str, Recipe]:
    recipes = take_linear("durations.speaker", f"{theirs}.cond") if config.speaker_size else {}
    if not config.stochastic:
        for index in range(2):
            recipes |= take_linear(f"durations.convs.{index}", f"{theirs}.conv_{index + 1}")
            recipes |= take_linear(f"durations.norms.{index}", f"{theirs}.norm_{index + 1}")
        return recipes | take_linear("durations.output", f"{theirs}.proj")
    recipes |= take_linear("durations.input", f"{theirs}.conv_pre")
    recipes |= take_linear("durations.output", f"{theirs}.conv_proj")
    recipes |= _map_separable(config, "durations.body", f"{theirs}.conv_dds")
    for name in ("translate", "log_scale"):
        recipes[f"durations.{name}"] = reshape(f"{theirs}.flows.0.{name}", 2)
    for index in range(config.num_run_flows):
        ours, flow = f"durations.flows.{index}", f"{theirs}.flows.{config.num_flows - index}"
        recipes |= take_linear(f"{ours}.input", f"{flow}.conv_pre")
        recipes |= take_linear(f"{ours}.output", f"{flow}.conv_proj")
        recipes |= _map_separable(config, f"{ours}.body", f"{flow}.conv_dds")
    return recipes


def _map_separable(config: VitsDurationComponent, ours: str, theirs: str) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    names = (
        ("dilated", "convs_dilated"),
        ("dilated_norms", "norms_1"),
        ("points", "convs_pointwise"),
        ("point_norms", "norms_2"),
    )
    for index in range(config.num_layers):
        for name, leaf in names:
            recipes |= take_linear(f"{ours}.{name}.{index}", f"{theirs}.{leaf}.{index}")
    return recipes


def _map_flow(config: VitsFlowComponent, tensors: Tensors, theirs: str) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for index in range(config.num_flows):
        ours, flow = f"flow.couplings.{index}", f"{theirs}.{index}"
        recipes |= take_linear(f"{ours}.input", f"{flow}.conv_pre")
        recipes |= take_linear(f"{ours}.output", f"{flow}.conv_post")
        net = f"{flow}.wavenet"
        if config.speaker_size is not None:
            recipes |= take_normed(f"{ours}.wavenet.speaker", f"{net}.cond_layer", tensors)
        for layer in range(config.num_layers):
            recipes |= take_normed(f"{ours}.wavenet.gates.{layer}", f"{net}.in_layers.{layer}", tensors)
            recipes |= take_normed(f"{ours}.wavenet.outputs.{layer}", f"{net}.res_skip_layers.{layer}", tensors)
    return recipes


def _map_vocoder(config: HifiganComponent, tensors: Tensors, theirs: str) -> dict[str, Recipe]:
    recipes = take_linear("vocoder.input", f"{theirs}.conv_pre")
    recipes |= take_linear("vocoder.output", f"{theirs}.conv_post", bias=False)
    if config.speaker_size is not None:
        recipes |= take_linear("vocoder.speaker", f"{theirs}.cond")
    kernels = len(config.residual_kernels)
    for stage in range(len(config.upsample_rates)):
        ours = f"vocoder.stages.{stage}"
        recipes |= take_normed(f"{ours}.conv", f"{theirs}.upsampler.{stage}", tensors)
        for kernel, dilations in enumerate(config.residual_dilations):
            block = f"{theirs}.resblocks.{stage * kernels + kernel}"
            for step in range(len(dilations)):
                for name, leaf in (("dilated", "convs1"), ("plain", "convs2")):
                    place = f"{ours}.blocks.{kernel}.{name}.{step}"
                    recipes |= take_normed(place, f"{block}.{leaf}.{step}", tensors)
    return recipes
