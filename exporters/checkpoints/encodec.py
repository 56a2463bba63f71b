"""EnCodec: SEANet on both sides of a residual vector quantiser.

encoder.layers.{0 conv, then units, elu, strided conv for each ratio; lstm, elu, conv}
-> quantizer.layers.N.codebook.embed -> decoder.layers.{0 conv, 1 lstm, then elu, transposed conv, units for each ratio;
elu, conv}; weight norm as weight_g, weight_v or as parametrizations.weight.original0, original1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.config import Config
from exporters.checkpoints.files.recipes import Recipe, compute, stack, take_module
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.files.weight_norm import take_normed
from specs.components.audio.encodec import EncodecComponent
from specs.errors import CheckpointError
from specs.schema import Spec

if TYPE_CHECKING:
    from torch import Tensor

CODEC_UNUSED = {
    "quantizer.layers.*.codebook.inited": "a note of training",
    "quantizer.layers.*.codebook.cluster_size": "a statistic of training",
    "quantizer.layers.*.codebook.embed_avg": "a statistic of training",
}


@final
class EncodecImporter(Importer):
    """`EncodecModel`."""

    title = "EnCodec"
    model_types = ("encodec",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        codec = make_codec(folder.config, kind="audio.encodec")
        count, hop = codec["num_codebooks"], math.prod(codec["upsampling_ratios"])
        return {
            "modality": {"inputs": ["audio"], "outputs": ["audio"]},
            "architecture": "hybrid",
            "objective": "reconstruction",
            "components": {"codec": codec},
            "dims": {
                "codebooks": {"min": 1, "opt": count, "max": count},
                "samples": {"min": 2 * hop, "opt": 500 * hop, "max": 2048 * hop},
            },
        }

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(EncodecComponent, spec.components["codec"])
        return map_codec(config, folder.tensors, ours="codec", theirs="")

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return CODEC_UNUSED


def make_codec(config: Config, *, kind: str) -> dict[str, Any]:
    """The component that an EnCodec's config describes.

    Raises:
        CheckpointError: an option that is not implemented.
    """
    config.require("normalize", (False,), False)
    config.require("chunk_length_s", (None,), None)
    hidden_size = config.take("hidden_size", int, 128)
    config.require("codebook_dim", (hidden_size,), hidden_size)
    causal = config.take("use_causal_conv", bool, True)
    codec: dict[str, Any] = {
        "kind": kind,
        "sample_rate_hz": config.take("sampling_rate", int, 24000),
        "audio_channels": config.take("audio_channels", int, 1),
        "num_codebooks": count_codebooks(config),
        "codebook_size": config.take("codebook_size", int, 1024),
        "hidden_size": hidden_size,
        "num_filters": config.take("num_filters", int, 32),
        "num_residual_layers": config.take("num_residual_layers", int, 1),
        "upsampling_ratios": config.take("upsampling_ratios", list, [8, 5, 4, 2]),
        "norm_type": config.require("norm_type", ("weight_norm", "time_group_norm"), "weight_norm"),
        "kernel_size": config.take("kernel_size", int, 7),
        "last_kernel_size": config.take("last_kernel_size", int, 7),
        "residual_kernel_size": config.take("residual_kernel_size", int, 3),
        "dilation_growth_rate": config.take("dilation_growth_rate", int, 2),
        "compress": config.take("compress", int, 2),
        "num_lstm_layers": config.take("num_lstm_layers", int, 2),
        "causal": causal,
        "pad_mode": config.require("pad_mode", ("reflect", "constant", "replicate"), "reflect"),
        "conv_shortcut": config.take("use_conv_shortcut", bool, True),
    }
    if causal:
        codec["trim_right_ratio"] = config.take("trim_right_ratio", float, 1.0)
    else:
        config.require("trim_right_ratio", (1.0,), 1.0)
    return codec


def count_codebooks(config: Config) -> int:
    """As many as the largest bandwidth pays for: kbit/s over frames a second times bits a code."""
    bandwidths = config.take("target_bandwidths", list, [1.5, 3.0, 6.0, 12.0, 24.0])
    ratios = config.take("upsampling_ratios", list, [8, 5, 4, 2])
    numbers = all(type(value) in (int, float) and value > 0 for value in [*bandwidths, *ratios])
    size = config.take("codebook_size", int, 1024)
    if not bandwidths or not ratios or not numbers or size < 2:
        raise CheckpointError(
            "the checkpoint's config does not say how many codebooks there are",
            where=config.where,
            got=f"target_bandwidths {bandwidths}, upsampling_ratios {ratios}, codebook_size {size}",
            fix="restore config.json: it belongs to the checkpoint",
        )
    frame_rate = math.ceil(config.take_count("sampling_rate", 24000) / math.prod(ratios))
    return int(1000 * bandwidths[-1] // (frame_rate * math.ceil(math.log2(size))))


def map_codec(config: EncodecComponent, tensors: Tensors, *, ours: str, theirs: str) -> dict[str, Recipe]:
    """Recipes of a codec's parameters; `ours` is the component, `theirs` stands before the checkpoint's names."""
    books = [f"{theirs}quantizer.layers.{index}.codebook.embed" for index in range(config.num_codebooks)]
    recipes = {f"{ours}.codebooks.token_embedding.weight": stack(*books)}
    mapper = _Mapper(config, tensors, recipes)
    mapper.map_decoder(f"{ours}.decoder", f"{theirs}decoder.layers")
    if config.has_encoder:
        mapper.map_encoder(f"{ours}.encoder", f"{theirs}encoder.layers")
    return recipes


class _Mapper:
    """Walks EnCodec's numbered layers, and fills `recipes`."""

    def __init__(self, config: EncodecComponent, tensors: Tensors, recipes: dict[str, Recipe]) -> None:
        self.config, self.tensors, self.recipes = config, tensors, recipes

    def map_decoder(self, ours: str, theirs: str) -> None:
        self.map_convolution(f"{ours}.input", f"{theirs}.0")
        self.map_lstm(f"{ours}.lstm", f"{theirs}.1.lstm")
        place = 2
        for stage in range(len(self.config.upsampling_ratios)):
            self.map_convolution(f"{ours}.stages.{stage}.conv", f"{theirs}.{place + 1}")  # an elu comes first
            place += 2
            for unit in range(self.config.num_residual_layers):
                self.map_unit(f"{ours}.stages.{stage}.units.{unit}", f"{theirs}.{place}")
                place += 1
        self.map_convolution(f"{ours}.output", f"{theirs}.{place + 1}")

    def map_encoder(self, ours: str, theirs: str) -> None:
        self.map_convolution(f"{ours}.input", f"{theirs}.0")
        place = 1
        for stage in range(len(self.config.upsampling_ratios)):
            for unit in range(self.config.num_residual_layers):
                self.map_unit(f"{ours}.stages.{stage}.units.{unit}", f"{theirs}.{place}")
                place += 1
            self.map_convolution(f"{ours}.stages.{stage}.conv", f"{theirs}.{place + 1}")  # an elu comes first
            place += 2
        self.map_lstm(f"{ours}.lstm", f"{theirs}.{place}.lstm")
        self.map_convolution(f"{ours}.output", f"{theirs}.{place + 2}")

    def map_unit(self, ours: str, theirs: str) -> None:
        self.map_convolution(f"{ours}.expand", f"{theirs}.block.1")
        self.map_convolution(f"{ours}.project", f"{theirs}.block.3")
        if self.config.conv_shortcut:
            self.map_convolution(f"{ours}.shortcut", f"{theirs}.shortcut")

    def map_convolution(self, ours: str, theirs: str) -> None:
        self.recipes |= take_normed(f"{ours}.conv", f"{theirs}.conv", self.tensors)
        if self.config.norm_type == "time_group_norm":
            self.recipes |= take_module(f"{ours}.norm", f"{theirs}.norm", "weight", "bias")

    def map_lstm(self, ours: str, theirs: str) -> None:
        for layer in range(self.config.num_lstm_layers):
            place = f"{ours}.layers.{layer}"
            self.recipes[f"{place}.input_weight"] = compute(reorder_gates, f"{theirs}.weight_ih_l{layer}")
            self.recipes[f"{place}.state_weight"] = compute(reorder_gates, f"{theirs}.weight_hh_l{layer}")
            biases = [f"{theirs}.bias_{part}_l{layer}" for part in ("ih", "hh")]
            self.recipes[f"{place}.bias"] = compute(reorder_gates, *biases)


def reorder_gates(*parts: Tensor) -> Tensor:
    """torch's rows (input, forget, cell, output) in ONNX's order (input, output, forget, cell), part below part."""
    gates = [part.chunk(4) for part in parts]
    import torch

    return torch.cat([part[index] for part in gates for index in (0, 3, 1, 2)])
