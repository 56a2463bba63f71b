"""ViT, CLIP and SigLIP against transformers: each option of their configs, towers alone, whole models, classifiers."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from exporters.checkpoints import open_checkpoint
from specs.components import VisionTransformerComponent
from specs.errors import CheckpointError, MetagenError, WeightsError
from specs.models.vision.vit import VisionTransformer
from tests.checkpoints.compare import ROWS, Row, compare, enliven
from tests.checkpoints.support import Array, build, edit_config, open_onnx, run_torch, save

SIZES = {"hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3}
TEXT = {**SIZES, "vocab_size": 97, "max_position_embeddings": 11, "eos_token_id": 96, "bos_token_id": 1}
PICTURE = {**SIZES, "hidden_size": 48, "image_size": 20, "patch_size": 5}
#: Output of ours -> the library's
IMAGE = {"embedding": "pooler_output", "token_features": "last_hidden_state"}
LOGITS = {"logits": "logits"}


@dataclasses.dataclass(frozen=True)
class Case:
    """A tower alone: the library's class and config, and which of our outputs is which of its own."""

    model: str
    options: dict[str, Any]
    outputs: dict[str, str] = dataclasses.field(default_factory=lambda: IMAGE)


CASES = {
    "ViT, pooler": Case("ViTModel", {"image_size": (15, 24), "patch_size": (5, 8)}),
    "ViT, no bias, relu, pooler of 20": Case(
        "ViTModel",
        {
            "qkv_bias": False,
            "hidden_act": "relu",
            "pooler_output_size": 20,
            "pooler_act": "gelu",
            "layer_norm_eps": 1e-2,
        },
    ),
    "ViT, classes, grey": Case(
        "ViTForImageClassification",
        {"num_labels": 5, "num_channels": 1, "image_size": [12, 20], "patch_size": 4},
        LOGITS,
    ),
    "ViT, 23 pixels of 5": Case("ViTForImageClassification", {"image_size": 23, "hidden_act": "gelu_new"}, LOGITS),
    "CLIP, image tower": Case("CLIPVisionModel", {"hidden_act": "gelu", "layer_norm_eps": 3e-3}),
    "CLIP, image tower, projected": Case(
        "CLIPVisionModelWithProjection",
        {"projection_dim": 7, "image_size": 17, "num_channels": 4},
        {"embedding": "image_embeds", "token_features": "last_hidden_state"},
    ),
    "CLIP, image tower, grey": Case("CLIPVisionModel", {"num_channels": 1}),
    "SigLIP, image tower": Case("SiglipVisionModel", {"num_attention_heads": 8}),
    "SigLIP, image tower, 19 pixels of 6": Case("SiglipVisionModel", {"image_size": 19, "patch_size": 6}),
    "SigLIP, image tower, no head": Case(
        "SiglipVisionModel", {"vision_use_head": False}, {"token_features": "last_hidden_state"}
    ),
}
TEXTS = {
    "CLIP, text tower": Case("CLIPTextModel", {}),
    "CLIP, text tower, largest id": Case("CLIPTextModel", {"eos_token_id": 2, "hidden_act": "gelu_pytorch_tanh"}),
    "CLIP, text tower, projected": Case(
        "CLIPTextModelWithProjection",
        {"projection_dim": 9, "layer_norm_eps": 1e-3},
        {"embedding": "text_embeds", "token_features": "last_hidden_state"},
    ),
    "SigLIP, text tower": Case("SiglipTextModel", {"projection_size": 13}),
}


def make_model(case: Case) -> Any:
    kind = case.model.partition("Model")[0].partition("For")[0].replace("CLIPModel", "CLIP")
    sizes = TEXT if "Text" in case.model else PICTURE
    config = getattr(hf, f"{kind}Config")(**{**sizes, **case.options})
    return enliven(getattr(hf, case.model)(config), scale=1.5)


def make_pixels(spec_config: Any, batch: int = 3) -> Array:
    height, width = spec_config.image
    random = np.random.default_rng(0)
    return random.random((batch, spec_config.num_channels, height, width)).astype(np.float32)


def normalise(pixels: Array, config: Any) -> Tensor:
    """What the library's processor makes of pixels in [0, 1], in float64."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (config.image_mean, config.image_std))
    return torch.from_numpy((pixels.astype(np.float64) - mean) / std)


def run_library(model: Any, **inputs: Tensor) -> tuple[Any, Any]:
    """The library's outputs in fp32 and fp64."""
    wide = copy.deepcopy(model).double()
    narrow = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        return model(**narrow), wide(**inputs)


def make_texts(config: Any, end: int | None, batch: int = 3) -> Array:
    """Ragged texts with their end, and anything behind it."""
    random = np.random.default_rng(1)
    ids = random.integers(3, config.vocab_size - 1, (batch, config.context_length))
    for row, place in enumerate((config.context_length - 1, 4, 1)[:batch]):
        ids[row, place] = config.vocab_size - 1 if end is None else end
    return ids


def check(name: str, stage: str, ours: dict[str, Array], outputs: dict[str, str], fp32: Any, fp64: Any) -> list[Row]:
    family, _, rest = name.partition(", ")
    assert set(ours) == set(outputs)
    return [
        compare(family, rest, stage, mine, ours[mine], fp32[theirs], fp64[theirs]) for mine, theirs in outputs.items()
    ]


@pytest.mark.parametrize("name", CASES)
def test_image_towers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = make_model(case)
    spec, (graph,) = build(save(model, tmp_path))
    (config,) = spec.components.values()
    pixels = make_pixels(config)
    fp32, fp64 = run_library(model, pixel_values=normalise(pixels, config))
    check(name, "torch", run_torch(graph, image=pixels), case.outputs, fp32, fp64)
    if name in ("ViT, classes, grey", "CLIP, image tower, projected", "SigLIP, image tower"):
        check(name, "onnx", open_onnx(spec, graph, tmp_path)(image=pixels), case.outputs, fp32, fp64)


@pytest.mark.parametrize("name", TEXTS)
def test_text_towers(name: str, tmp_path: Path) -> None:
    case = TEXTS[name]
    model = make_model(case)
    spec, (graph,) = build(save(model, tmp_path))
    config: Any = spec.components["encoder"]
    ids = make_texts(config, getattr(config, "end_token", None))
    run = None if "projected" in name or "largest" in name else open_onnx(spec, graph, tmp_path)
    for width in (config.context_length, 5):  # SigLIP's last token is padding's, wherever the text ends
        given = ids[:, :width] if width > 5 else ids[1:, :width]
        fp32, fp64 = run_library(model, input_ids=torch.from_numpy(given))
        check(f"{name}, {width} tokens", "torch", run_torch(graph, token_ids=given), case.outputs, fp32, fp64)
        if run is not None:
            check(f"{name}, {width} tokens", "onnx", run(token_ids=given), case.outputs, fp32, fp64)


WHOLE = {
    "CLIP, whole": (hf.CLIPModel, hf.CLIPConfig, {"projection_dim": 14}, torch.float32),
    "CLIP, whole, bf16, shards": (hf.CLIPModel, hf.CLIPConfig, {"projection_dim": 14}, torch.bfloat16),
    "SigLIP, whole": (hf.SiglipModel, hf.SiglipConfig, {}, torch.float32),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str, tmp_path: Path) -> None:
    kind, kind_config, options, dtype = WHOLE[name]
    text = {**TEXT, "projection_size": 48} if "SigLIP" in name else TEXT
    model: Any = enliven(kind(kind_config(text_config=text, vision_config=PICTURE, **options)), scale=1.5)
    folder = save(model.to(dtype), tmp_path / "model", max_shard_size="40KB")
    model = kind.from_pretrained(folder, dtype=torch.float32)
    spec, graphs = build(folder)
    towers = {graph.name: graph for graph in graphs}
    assert {parameter.dtype for graph in graphs for parameter in graph.module.parameters()} == {dtype}
    image_config, text_config = (spec.components[part] for part in ("image_encoder", "text_encoder"))
    pixels, ids = make_pixels(image_config), make_texts(text_config, getattr(text_config, "end_token", None))
    fp32, fp64 = run_library(model, pixel_values=normalise(pixels, image_config), input_ids=torch.from_numpy(ids))
    outputs = {"image_embedding": "image_embeds", "text_embedding": "text_embeds", "similarity": "logits_per_image"}
    for stage in ("onnx",) if dtype == torch.bfloat16 or "SigLIP" in name else ("torch",):
        runs = {
            part: open_onnx(spec, graph, tmp_path)
            if stage == "onnx"
            else (lambda graph=graph, **x: run_torch(graph, **x))
            for part, graph in towers.items()
        }
        features = runs["image_encoder"](image=pixels) | runs["text_encoder"](token_ids=ids)
        check(name, stage, runs["fusion"](**features), outputs, fp32, fp64)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_towers_as_classifiers(kind: str, tmp_path: Path) -> None:
    config = getattr(hf, f"{kind}Config")(text_config=TEXT, vision_config=PICTURE)
    config.id2label = {0: "cat", 1: "dog", 2: "neither"}
    model: Any = enliven(getattr(hf, f"{kind}ForImageClassification")(config), scale=1.5)
    spec, (graph,) = build(save(model, tmp_path))
    assert spec.labels == ("cat", "dog", "neither")
    pixels = make_pixels(spec.components["classifier"])
    fp32, fp64 = run_library(model, pixel_values=normalise(pixels, spec.components["classifier"]))
    name = f"{'SigLIP' if kind == 'Siglip' else kind}, classes"
    check(name, "torch", run_torch(graph, image=pixels), LOGITS, fp32, fp64)


def test_hidden_states_of_any_layer(tmp_path: Path) -> None:
    """What LLaVA looks through: counted as the library counts, with the class token and without."""
    model = make_model(CASES["CLIP, image tower"])
    spec, (graph,) = build(save(model, tmp_path))
    tower: Any = graph.module.tower
    assert isinstance(tower, VisionTransformer)
    pixels = make_pixels(spec.components["encoder"])
    values = normalise(pixels, spec.components["encoder"])
    with torch.no_grad():
        wanted = model(pixel_values=values.float(), output_hidden_states=True).hidden_states
        exact = copy.deepcopy(model).double()(pixel_values=values, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2, 3, -1, -2):
            got = tower.forward_features(torch.from_numpy(pixels), layer=layer)
            compare("CLIP", f"hidden state {layer}", "torch", "tokens", got.numpy(), wanted[layer], exact[layer])
        bare = tower.forward_features(torch.from_numpy(pixels), layer=-2, keep_class_token=False)
    assert torch.equal(bare, tower.forward_features(torch.from_numpy(pixels), layer=-2)[:, 1:])


MUTANTS = {
    "eps": ("layer_norm_eps", 1e-6, "CLIP, image tower"),
    "tanh gelu": ("hidden_act", "gelu_new", "CLIP, image tower"),
    "quick gelu": ("hidden_act", "gelu", "CLIP, image tower, projected"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_noticed(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    key, value, name = MUTANTS[mutant]
    model = make_model(CASES[name])
    folder = save(model, tmp_path)
    edit_config(folder, **{key: value})
    spec, (graph,) = build(folder)
    pixels = make_pixels(spec.components["encoder"])
    fp32, fp64 = run_library(model, pixel_values=normalise(pixels, spec.components["encoder"]))
    with pytest.raises(AssertionError, match="more than"):
        check(name, "torch", run_torch(graph, image=pixels), CASES[name].outputs, fp32, fp64)


@pytest.mark.parametrize(("first", "second"), [("q_proj", "k_proj"), ("k_proj", "v_proj")])
def test_swapped_matrices_are_noticed(first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    model = make_model(CASES["SigLIP, image tower"])
    folder = save(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    names = {f"encoder.layers.1.self_attn.{first}.weight": f"encoder.layers.1.self_attn.{second}.weight"}
    for one, other in names.items():
        tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save_file(tensors, folder / "model.safetensors")
    spec, (graph,) = build(folder)
    pixels = make_pixels(spec.components["encoder"])
    fp32, fp64 = run_library(model, pixel_values=normalise(pixels, spec.components["encoder"]))
    with pytest.raises(AssertionError, match="more than"):
        check("SigLIP", "torch", run_torch(graph, image=pixels), IMAGE, fp32, fp64)


def test_names_that_the_library_uses_in_memory(tmp_path: Path) -> None:
    """transformers 5 renames ViT's parts while loading; a file with the new names is the same model."""
    model = make_model(CASES["ViT, pooler"])
    folder = save(model, tmp_path)
    _, (graph,) = build(folder)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    _, (renamed,) = build(folder)
    for one, other in zip(graph.module.parameters(), renamed.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_old_configs_of_clip(tmp_path: Path) -> None:
    """`text_config_dict`, where it is given, stands for the whole of `text_config`."""
    config = hf.CLIPConfig(text_config=TEXT, vision_config=PICTURE, projection_dim=14)
    folder = save(enliven(hf.CLIPModel(config)), tmp_path)
    wanted = open_checkpoint(folder).spec
    edit_config(folder, text_config={"hidden_size": 7}, text_config_dict=config.text_config.to_dict())
    assert open_checkpoint(folder).spec == wanted


def test_siglips_tokenizer_fills_up_behind_a_text(tmp_path: Path) -> None:
    """What is pooled is the last token: padding's, or with padding in front the text's."""
    folder = save(make_model(TEXTS["SigLIP, text tower"]), tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text('{"padding_side": "right"}')
    open_checkpoint(folder)
    path.write_text('{"padding_side": "left"}')
    with pytest.raises(CheckpointError, match="'padding_side' is 'left'"):
        open_checkpoint(folder)


def change_config(folder: Path, **changes: Any) -> None:
    edit_config(folder, **changes)


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"hidden_act": "mish"}, CheckpointError, "'hidden_act' is 'mish'"),
        ({"head_dim": 20}, CheckpointError, "'head_dim' is 20"),
        ({"image_size": [15, 24, 3]}, CheckpointError, "'image_size' in the checkpoint's config is no size"),
        ({"image_size": [15, 32]}, WeightsError, "position"),
        ({"num_attention_heads": 5}, MetagenError, "num_heads 5 does not divide hidden_size 48"),
        ({"num_hidden_layers": 4}, WeightsError, "encoder.layer.3"),
    ],
)
def test_bad_configs(change: dict[str, Any], kind: type[MetagenError], words: str, tmp_path: Path) -> None:
    folder = save(make_model(CASES["ViT, pooler"]), tmp_path)
    edit_config(folder, **change)
    with pytest.raises(kind) as caught:
        build(folder)
    assert words in str(caught.value)


def test_missing_and_left_over_tensors(tmp_path: Path) -> None:
    folder = save(make_model(CASES["CLIP, image tower"]), tmp_path)
    drop_tensor(folder, "pre_layrnorm.bias")
    with pytest.raises(WeightsError, match=r"lacks the tensor 'pre_layrnorm.bias'"):
        build(folder)
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(WeightsError):
        build(folder)


def test_projection_and_pooling_of_a_component() -> None:
    config = VisionTransformerComponent(
        kind="vision.vit", image_size=8, patch_size=4, hidden_size=8, num_layers=1, num_heads=2, num_registers=3,
        layer_scale=True, pooling="mean", projection_size=5,
    )  # fmt: skip
    model = VisionTransformer(config)
    assert sum(p.numel() for p in model.parameters()) == config.count_parameters()
    nn.init.ones_(model.layers[0].attention_scale)  # type: ignore[arg-type,union-attr]
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert model.forward_features(torch.rand(2, 3, 8, 8)).shape == (2, 8, 8)
