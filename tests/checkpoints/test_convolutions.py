"""ResNet and MobileViT against transformers: each option of their configs, towers alone, classifiers, whole bundles."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from engines.runtime import Request, answer, load
from engines.runtime.media.image import load_image
from exporters.checkpoints import open_checkpoint, read_spec
from specs.errors import CheckpointError, GraphError, MetagenError, WeightsError
from specs.handlers.shared.towers import describe_image
from tests.checkpoints.compare import ROWS, compare, enliven, export
from tests.checkpoints.support import Array, build, edit_config, open_onnx, run_torch, save
from tests.checkpoints.test_pictures import make_picture

RESNET: dict[str, Any] = {"embedding_size": 12, "hidden_sizes": [16, 20, 28], "depths": [2, 1, 2], "num_labels": 5}
MOBILEVIT: dict[str, Any] = {
    "neck_hidden_sizes": [8, 12, 16, 20, 20, 28, 36],
    "hidden_sizes": [18, 24, 30],
    "num_attention_heads": 3,
    "num_labels": 5,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: the library's class, its config, height and width of a picture, and the type it is saved in."""

    model: str
    options: dict[str, Any]
    image: tuple[int, int] = (48, 64)
    dtype: torch.dtype = torch.float32


CASES = {
    "ResNet, bottleneck": Case("ResNetForImageClassification", {}),
    "ResNet, basic, odd picture": Case("ResNetForImageClassification", {"layer_type": "basic"}, (47, 53)),
    "ResNet, halved at once, in the 1 by 1": Case(
        "ResNetForImageClassification",
        {"downsample_in_first_stage": True, "downsample_in_bottleneck": True, "hidden_sizes": [12, 18, 22]},
    ),
    "ResNet, gelu, grey, one stage": Case(
        "ResNetForImageClassification",
        {"hidden_act": "gelu", "num_channels": 1, "hidden_sizes": [12], "depths": [3]},
    ),
    "ResNet, tower": Case("ResNetModel", {"layer_type": "basic", "hidden_act": "silu"}, (33, 40)),
    "ResNet, bf16, shards": Case("ResNetForImageClassification", {}, dtype=torch.bfloat16),
    "MobileViT, classes": Case("MobileViTForImageClassification", {}, (64, 96)),
    "MobileViT, maps that patches do not fill": Case("MobileViTForImageClassification", {"patch_size": 4}, (72, 56)),
    "MobileViT, stride 16, no bias, relu": Case(
        "MobileViTForImageClassification",
        {"output_stride": 16, "qkv_bias": False, "hidden_act": "relu", "expand_ratio": 1.7, "layer_norm_eps": 1e-2},
        (64, 64),
    ),
    "MobileViT, stride 8, wide kernels": Case(
        "MobileViTForImageClassification",
        {"output_stride": 8, "conv_kernel_size": 5, "mlp_ratio": 1.3, "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 24]},
        (48, 64),
    ),
    "MobileViT, tower": Case("MobileViTModel", {"num_channels": 4}, (64, 64)),
    "MobileViT, maps that patches do not fill, fp16": Case(
        "MobileViTForImageClassification", {"patch_size": 4}, (72, 56), torch.float16
    ),
}
EXPORTED = (
    "ResNet, basic, odd picture",
    "ResNet, bf16, shards",
    "ResNet, tower",
    "MobileViT, maps that patches do not fill, fp16",
)


def make_model(case: Case) -> Any:
    """With statistics that matter: a variance of 1 and a mean of 0 would hide a batch norm that is left out.

    MobileViT's scales begin near 0, where nothing of a picture would reach the logits; much larger ones would let
    values grow until no eps can be noticed.
    """
    is_resnet = case.model.startswith("ResNet")
    config = (hf.ResNetConfig if is_resnet else hf.MobileViTConfig)(
        **{**(RESNET if is_resnet else MOBILEVIT), **case.options}
    )
    model = enliven(getattr(hf, case.model)(config), scale=1.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.3, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.3, 3.0, generator=generator)
        for name, value in model.named_parameters():
            if name.endswith("normalization.weight") and not is_resnet:
                value.add_(0.8)
    return model.to(case.dtype)


def write(case: Case, folder: Path, **options: Any) -> Any:
    """The checkpoint with an image processor of the case's size; the model as the library reads it back, in fp32."""
    save(make_model(case), folder, max_shard_size="40KB" if case.dtype == torch.bfloat16 else "5GB")
    height, width = case.image
    ours = ConvNextImageProcessorPil if case.model.startswith("ResNet") else MobileViTImageProcessorPil
    crop = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": height, "width": width}}
    ours(**crop, **options).save_pretrained(folder)
    return getattr(hf, case.model).from_pretrained(folder, dtype=torch.float32).eval()


def make_pixels(config: Any, batch: int = 3) -> Array:
    random = np.random.default_rng(0)
    return random.random((batch, config.num_channels, *config.image)).astype(np.float32)


def run_library(model: Any, pixels: Array, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The library's answers in fp32 and fp64, by our names."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (config.image_mean, config.image_std))
    values = torch.from_numpy((pixels.astype(np.float64) - mean) / std)
    values = values.flip(1) if config.channel_order == "bgr" else values
    answers = []
    for runner, given in ((model, values.float()), (copy.deepcopy(model).double(), values)):
        with torch.no_grad():
            out = runner(pixel_values=given)
        if "logits" in out:
            answers.append({"logits": out.logits})
        else:
            answers.append({"embedding": out.pooler_output.flatten(1), "feature_map": out.last_hidden_state})
    return answers[0], answers[1]


def check(name: str, stage: str, ours: dict[str, Array], fp32: dict[str, Any], fp64: dict[str, Any]) -> None:
    family, _, rest = name.partition(", ")
    assert list(ours) == list(fp32)
    for output, value in ours.items():
        compare(family, rest, stage, output, value, fp32[output], fp64[output])


@pytest.mark.parametrize("name", CASES)
def test_networks(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = write(case, tmp_path)
    spec, (graph,) = build(tmp_path)
    (config,) = spec.components.values()
    assert config.image == case.image  # type: ignore[attr-defined]
    pixels = make_pixels(config)
    fp32, fp64 = run_library(model, pixels, config)
    if case.dtype == torch.float32:
        check(name, "torch", run_torch(graph, image=pixels), fp32, fp64)
    if name in EXPORTED:
        check(name, "onnx", open_onnx(spec, graph, tmp_path)(image=pixels), fp32, fp64)


def test_without_an_image_processor(tmp_path: Path) -> None:
    """ResNet's config has no picture size at all, MobileViT's has one."""
    save(make_model(CASES["ResNet, bottleneck"]), tmp_path / "resnet")
    config: Any = read_spec(tmp_path / "resnet").components["classifier"]
    assert config.image == (224, 224) and config.preprocessing.crop == 224 and config.preprocessing.size == 256
    save(make_model(Case("MobileViTModel", {"image_size": 96})), tmp_path / "mobilevit")
    config = read_spec(tmp_path / "mobilevit").components["encoder"]
    assert config.image == (96, 96) and config.channel_order == "bgr"


#: processor, and what its file says
PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ConvNeXt": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 40}}),
    "ConvNeXt, own share": (ConvNextImageProcessorPil, {"size": 40, "crop_pct": 0.95, "resample": 2}),
    "ConvNeXt, stretched": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 384}}),
    "MobileViT": (MobileViTImageProcessorPil, {"size": {"shortest_edge": 41}, "crop_size": 40}),
    "MobileViT, RGB": (MobileViTImageProcessorPil, {"size": 41, "crop_size": 40, "do_flip_channel_order": False}),
    "MobileViT, normalised, it says": (
        MobileViTImageProcessorPil,
        {"size": 50, "crop_size": {"height": 40, "width": 48}, "do_normalize": True},
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processor_s(name: str, tmp_path: Path) -> None:
    kind, options = PROCESSORS[name]
    save(make_model(CASES["ResNet, basic, odd picture" if "Conv" in name else "MobileViT, classes"]), tmp_path)
    processor = kind(**options)
    processor.save_pretrained(tmp_path)
    config: Any = read_spec(tmp_path).components["classifier"]
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (config.image_mean, config.image_std))
    for height, width in ((37, 53), (64, 47), (90, 41)):
        picture = make_picture(height, width)
        wanted = processor(picture, return_tensors="np")["pixel_values"]
        got = (load_image(np.asarray(picture), **describe_image(config)).astype(np.float64) - mean) / std
        got = got[:, ::-1] if config.channel_order == "bgr" else got
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet in three precisions for the CPU and TensorRT-RTX: verified by its own export."""
    folder = tmp_path_factory.mktemp("resnet")
    write(CASES["ResNet, bottleneck"], folder / "model", image_mean=[0.4, 0.5, 0.6])
    targets = ("cpu", "rtx-4090")
    return export(folder / "model", folder / "x.bundle", precisions=("fp32", "fp16", "int8"), targets=targets)


def test_a_bundle_s_graphs_have_no_batch_norm(bundle: Path) -> None:
    """19 of them, each in the convolution before it; INT8 has a scale for every output channel."""
    for path in sorted(bundle.rglob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        nodes = [node.op_type for node in model.graph.node]
        assert nodes.count("Conv") == 19 and "BatchNormalization" not in nodes, path.name
    assert path.name == "model.rtx-4090-int8.onnx"
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    producers = {node.output[0]: node for node in model.graph.node}
    weights = [producers[node.input[1]] for node in convolutions if node.input[1] in producers]
    assert len(weights) >= len(convolutions) - 1, "the first one reads the picture, and may stay"
    for weight in weights:
        assert weight.op_type == "DequantizeLinear" and sizes[weight.input[1]] == sizes[weight.input[0]][:1]


def test_a_picture_to_its_label(bundle: Path, tmp_path: Path) -> None:
    picture = make_picture(48, 64)
    picture.save(tmp_path / "x.png")
    with load(bundle) as session:
        found = answer(session, Request(files=(str(tmp_path / "x.png"),), top_k=5))
    folder = bundle.parent / "model"
    pixels = ConvNextImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        shares = hf.ResNetForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits.softmax(-1)
    wanted = {f"LABEL_{index}": float(share) for index, share in enumerate(shares[0])}
    for _, label, probability in found.rows:
        assert probability == pytest.approx(wanted[str(label)], abs=2e-2)  # INT8 comes first where it is


MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "the other halving": ("ResNet, bottleneck", {"downsample_in_bottleneck": True}),
    "another activation": ("ResNet, basic, odd picture", {"hidden_act": "gelu"}),
    "eps": ("MobileViT, classes", {"layer_norm_eps": 1e-4}),
    "heads": ("MobileViT, classes", {"num_attention_heads": 6}),
    "dilated": ("MobileViT, stride 8, wide kernels", {"output_stride": 16}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_noticed(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    name, change = MUTANTS[mutant]
    model = write(CASES[name], tmp_path)
    edit_config(tmp_path, **change)
    spec, (graph,) = build(tmp_path)
    pixels = make_pixels(spec.components["classifier"])
    fp32, fp64 = run_library(model, pixels, spec.components["classifier"])
    with pytest.raises(AssertionError, match="more than"):
        check(name, "torch", run_torch(graph, image=pixels), fp32, fp64)


@pytest.mark.parametrize("leaf", ["running_mean", "running_var", "weight"])
def test_a_lost_statistic_is_noticed(leaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    model = write(CASES["ResNet, bottleneck"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"resnet.encoder.stages.1.layers.0.shortcut.normalization.{leaf}"] *= 1.001
    save_file(tensors, tmp_path / "model.safetensors")
    spec, (graph,) = build(tmp_path)
    pixels = make_pixels(spec.components["classifier"])
    fp32, fp64 = run_library(model, pixels, spec.components["classifier"])
    with pytest.raises(AssertionError, match="more than"):
        check("ResNet", "torch", run_torch(graph, image=pixels), fp32, fp64)


@pytest.mark.parametrize(
    ("name", "change", "kind", "words"),
    [
        ("ResNet, bottleneck", {"layer_type": "wide"}, CheckpointError, "'layer_type' is 'wide'"),
        ("ResNet, bottleneck", {"depths": [2, 1]}, MetagenError, "depths names 2 stages, hidden_sizes 3"),
        ("ResNet, bottleneck", {"depths": [2, 1, "2"]}, CheckpointError, "'depths' in the checkpoint's config"),
        ("ResNet, bottleneck", {"depths": [2, 1, 3]}, WeightsError, "encoder.stages.2.layers.2"),
        ("ResNet, bottleneck", {"embedding_size": 13}, WeightsError, "has the wrong shape"),
        ("ResNet, bottleneck", {"hidden_act": "mish"}, CheckpointError, "'hidden_act' is 'mish'"),
        ("MobileViT, classes", {"num_attention_heads": 4}, MetagenError, "num_heads 4 does not divide hidden_sizes 18"),
        ("MobileViT, classes", {"conv_kernel_size": 4}, MetagenError, "conv_kernel_size must be odd"),
        ("MobileViT, classes", {"hidden_sizes": [18, 24]}, MetagenError, "hidden_sizes needs 3 numbers, got 2"),
        ("MobileViT, classes", {"patch_size": [2, 2]}, CheckpointError, "'patch_size' in the checkpoint's config"),
    ],
)
def test_bad_configs(name: str, change: dict[str, Any], kind: type[MetagenError], words: str, tmp_path: Path) -> None:
    folder = save(make_model(CASES[name]), tmp_path)
    edit_config(folder, **change)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value)


def test_what_is_missing_and_what_is_left_over(tmp_path: Path) -> None:
    folder = save(make_model(CASES["ResNet, bottleneck"]), tmp_path)
    unused = open_checkpoint(folder).unused
    assert unused and set(unused.values()) == {"a note of training"}
    tensors = load_file(folder / "model.safetensors")
    dropped = "resnet.embedder.embedder.normalization.running_var"
    del tensors[dropped]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=f"lacks the tensor '{dropped}'"):
        build(folder)


def test_a_segmenter_is_refused(tmp_path: Path) -> None:
    model = hf.MobileViTForSemanticSegmentation(hf.MobileViTConfig(**MOBILEVIT, aspp_out_channels=8))
    with pytest.raises(CheckpointError, match="segments pictures"):
        read_spec(save(model, tmp_path))


def test_int8_that_nothing_computes_in_is_refused(tmp_path: Path) -> None:
    write(CASES["ResNet, basic, odd picture"], tmp_path / "model")
    with pytest.raises(GraphError) as caught:
        export(tmp_path / "model", tmp_path / "x.bundle", precisions=("int8",), targets=("cpu",))
    assert str(caught.value) == (
        "int8 was asked for, and nothing of this model can be computed in it for cpu\n"
        "  where:   classifier/model.cpu-int8.onnx\n"
        "  got:     every product stays in higher precision: on CPUs int8 is for products with matrices, not "
        "convolutions\n"
        "  allowed: at least one product in int8\n"
        "  fix:     leave --precision away or ask for fp16 there; TensorRT targets take int8 convolutions"
    )
    assert not (tmp_path / "x.bundle").exists()
