"""ResNet (He et al. 2016): `ResNetModel` and `ResNetForImageClassification`.

[resnet.]embedder.embedder -> encoder.stages.N.layers.M.{layer.K, shortcut} -> classifier.1
each of them a convolution and a normalization with running statistics
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.recipes import Recipe, take_linear
from exporters.checkpoints.parts.activations import read_activation
from exporters.checkpoints.parts.convolutions import STATISTICS_UNUSED, make_picture_spec, read_sizes, take_conv_norm
from exporters.checkpoints.parts.pictures import CONVNEXT
from specs.components import ResNetComponent
from specs.schema import Spec

_IMAGE = 224  # the paper's; a config says nothing of it
_CONVOLUTIONS = {"basic": 2, "bottleneck": 3}


@final
class ResNetImporter(Importer):
    """`ResNetModel`, `ResNetForImageClassification`."""

    title = "ResNet"
    model_types = ("resnet",)

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        config = folder.config
        tower: dict[str, Any] = {
            "kind": "vision.resnet",
            "num_channels": config.take("num_channels", int, 3),
            "embedding_size": config.take("embedding_size", int, 64),
            "hidden_sizes": read_sizes(config, "hidden_sizes", [256, 512, 1024, 2048]),
            "depths": read_sizes(config, "depths", [3, 4, 6, 3]),
            "layer_type": config.require("layer_type", tuple(_CONVOLUTIONS), "bottleneck"),
            "downsample_in_first_stage": config.take("downsample_in_first_stage", bool, False),
            "downsample_in_bottleneck": config.take("downsample_in_bottleneck", bool, False),
            "activation": read_activation(config, "hidden_act", "relu"),
        }
        return make_picture_spec(
            folder,
            tower,
            architecture="cnn",
            classifier=("ResNetForImageClassification", "classifier.1.weight"),
            image=(_IMAGE, _IMAGE),
            usual=CONVNEXT,
        )

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        ((name, component),) = spec.components.items()
        config = cast(ResNetComponent, component)
        prefix = folder.tensors.find_prefix("embedder.embedder.convolution.weight", ("resnet.", ""))
        recipes = take_conv_norm(f"{name}.stem", f"{prefix}embedder.embedder")
        inputs = config.embedding_size
        for stage, (outputs, depth, stride) in enumerate(
            zip(config.hidden_sizes, config.depths, config.list_strides(), strict=True)
        ):
            for index in range(depth):
                ours = f"{name}.stages.{stage}.{index}"
                theirs = f"{prefix}encoder.stages.{stage}.layers.{index}"
                if index == 0 and (inputs != outputs or stride != 1):
                    recipes |= take_conv_norm(f"{ours}.shortcut", f"{theirs}.shortcut")
                for part in range(_CONVOLUTIONS[config.layer_type]):
                    recipes |= take_conv_norm(f"{ours}.convolutions.{part}", f"{theirs}.layer.{part}")
            inputs = outputs
        if config.num_classes:
            recipes |= take_linear(f"{name}.head", "classifier.1")
        return recipes

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        return STATISTICS_UNUSED
