"""Autoencoders, U-Nets and diffusion transformers of diffusers: ours equal theirs to their own rounding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engines.runtime import Picture, Request, answer, load
from engines.runtime.pipelines.stages.schedulers import SCHEDULERS
from exporters.checkpoints import open_checkpoint, read_spec
from specs.components import SchedulerComponent
from specs.errors import CheckpointError, InputError, SpecError, WeightsError
from specs.graphs import count_parameters
from specs.handlers import GraphModule, get_handler
from specs.load import dump_spec, override_spec
from specs.models.diffusion.unet import UNet
from specs.parsing.parse import parse_spec
from specs.schema import Dim, Spec
from tests.checkpoints.compare import compare, export, open_portable
from tests.checkpoints.tiny_diffusion import (
    DITS,
    UNETS,
    VAES,
    draw,
    make_dit,
    make_unet,
    make_vae,
)

#: diffusers hands a torch tensor to numpy in the way of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def build(folder: Path, spec: Spec | None = None) -> dict[str, GraphModule]:
    """Our modules by graph, with the checkpoint's tensors."""
    checkpoint = open_checkpoint(folder)
    spec = spec or checkpoint.spec
    return {g.name: g for g in get_handler(spec).build(spec, parameters=checkpoint.source)}


def run_vae(vae: nn.Module, image: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        encoded = vae.encode(image).latent_dist
        return {"mean": encoded.mean, "log_variance": encoded.logvar, "image": vae.decode(latents).sample}


@pytest.mark.parametrize("case", VAES)
def test_autoencoder(case: str, model_folder: Path) -> None:
    vae = make_vae(**VAES[case])
    vae.save_pretrained(model_folder)
    spec = read_spec(model_folder)
    config = spec.components["vae"]
    image, latents = draw(2, vae.config.in_channels, 44, 60).clamp(-1, 1), draw(2, vae.config.latent_channels, 11, 14)
    fp32 = run_vae(vae, image, latents)
    fp64 = run_vae(copy.deepcopy(vae).double(), image.double(), latents.double())
    graphs = build(model_folder)
    with torch.no_grad():
        mean, log_variance = graphs["vae.encode"].module(image)
        found = {"mean": mean, "log_variance": log_variance, "image": graphs["vae.decode"].module(latents)}
    for name, ours in found.items():
        compare("AutoencoderKL", case, "torch", name, ours.numpy(), fp32[name], fp64[name])
    assert count_parameters(spec)["vae"] == sum(p.numel() for p in vae.parameters())
    assert config.model_dump()["shift_factor"] == (vae.config.shift_factor or 0.0)
    assert bool(graphs["vae.decode"].keep_float32) == vae.config.force_upcast


def test_autoencoder_as_a_graph(tmp_path: Path) -> None:
    """Non-square sizes that tracing did not see; float16 keeps float32 where the config says force_upcast."""
    vae = make_vae(block_out_channels=(8, 16), latent_channels=3)
    vae.save_pretrained(tmp_path / "vae")
    bundle = export(tmp_path / "vae", tmp_path / "vae.bundle", precisions=("fp16",))
    image, latents = draw(2, 3, 26, 38).clamp(-1, 1), draw(1, 3, 9, 17)
    fp32 = run_vae(vae, image, latents)
    fp64 = run_vae(vae.double(), image.double(), latents.double())
    graphs = open_portable(bundle)
    found = graphs["vae.encode"]({"image": image.numpy()}) | graphs["vae.decode"]({"latents": latents.numpy()})
    for name, ours in found.items():
        compare("AutoencoderKL", "graph", "onnx", name, ours, fp32[name], fp64[name])
    with load(bundle) as session:  # what ran here is the float16 graph: equal to float32's, whose range it keeps
        half = session.graphs["vae.decode"].run({"latents": latents.numpy()})["image"]
        np.testing.assert_allclose(half, found["image"], atol=1e-5)
        kept = session.manifest.graphs[1].typed[0].keep_fp32
        assert any("force_upcast" in line for line in kept)
        np.save(tmp_path / "grey.npy", np.full((20, 30, 3), 128, np.uint8))
        found = answer(session, Request(files=(str(tmp_path / "grey.npy"),)))
        (picture,) = found.media
        assert isinstance(picture, Picture) and picture.pixels.shape == (32, 32, 3)
        assert 0 <= picture.pixels.min() < picture.pixels.max() <= 1


def test_so_many_steps_that_there_is_no_such_timestep() -> None:
    config = SchedulerComponent(kind="diffusion.scheduler", method="ddim").model_dump()
    scheduler = SCHEDULERS["ddim"](config, 1000)
    with pytest.raises(InputError, match="behind the last timestep"):
        scheduler.step(np.zeros((1, 1), np.float32), 0, np.zeros((1, 1), np.float32))
    with pytest.raises(InputError, match="steps is out of range"):
        SCHEDULERS["ddim"](config, 1001)


def test_old_attention_names(model_folder: Path) -> None:
    """Before 0.15 diffusers called to_q query, and the first files held 1 by 1 convolutions."""
    vae = make_vae(**VAES["three"])
    vae.save_pretrained(model_folder)
    new = build(model_folder)["vae.decode"].module
    path = model_folder / "diffusion_pytorch_model.safetensors"
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for word, old in words.items():
            name = name.replace(f"attentions.0.{word}", f"attentions.0.{old}")
        folded = "attentions.0" in name and tensor.dim() == 2
        renamed[name] = tensor[:, :, None, None].contiguous() if folded else tensor
    save_file(renamed, path)
    old = build(model_folder)["vae.decode"].module
    with torch.no_grad():
        assert torch.equal(old(draw(1, 5, 8, 6)), new(draw(1, 5, 8, 6)))


def make_feed(case: str, unet: nn.Module) -> dict[str, torch.Tensor]:
    """Two rows, odd sizes, one timestep that is no whole number."""
    width = unet.config.encoder_hid_dim or 24
    feed = {"sample": draw(2, 4, 13, 10), "timestep": torch.tensor([999.0, 37.5]), "encoder_states": draw(2, 9, width)}
    if case == "sdxl":
        sizes = torch.tensor([[1024.0, 768, 0, 0, 1024, 768], [512, 512, 8, 16, 640, 640]])
        feed |= {"text_embeds": draw(2, 20, seed=1), "time_ids": sizes}
    if case == "rare":
        feed["class_labels"] = torch.tensor([3, 6])
    return feed


def run_unet(unet: nn.Module, feed: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    feed = {name: value.to(dtype) if value.is_floating_point() else value for name, value in feed.items()}
    options: dict[str, Any] = {}
    if "text_embeds" in feed:
        options["added_cond_kwargs"] = {key: feed[key] for key in ("text_embeds", "time_ids")}
    if "class_labels" in feed:
        options["class_labels"] = feed["class_labels"]
    with torch.no_grad():
        out: torch.Tensor = unet(feed["sample"], feed["timestep"], feed["encoder_states"], **options).sample
    return out


@pytest.mark.parametrize("case", UNETS)
def test_unet(case: str, model_folder: Path) -> None:
    unet = make_unet(**UNETS[case])
    unet.save_pretrained(model_folder)
    feed = make_feed(case, unet)
    fp32 = run_unet(unet, feed, torch.float32)
    (graph,) = build(model_folder).values()
    with torch.no_grad():
        ours = graph.module(*feed.values()).numpy()
    assert [tensor.name for tensor in graph.inputs] == list(feed)
    fp64 = run_unet(copy.deepcopy(unet).double(), feed, torch.float64)
    compare("UNet2DConditionModel", case, "torch", "sample", ours, fp32, fp64)
    spec = read_spec(model_folder)
    assert count_parameters(spec)["unet"] == sum(p.numel() for p in unet.parameters())
    assert parse_spec(dump_spec(spec), source="written").components == spec.components


def test_unet_as_a_graph(tmp_path: Path) -> None:
    """bfloat16 weights in shards keep their type, and compute in float32."""
    unet = make_unet(**UNETS["rare"]).to(torch.bfloat16)
    unet.save_pretrained(tmp_path / "unet", max_shard_size="200KB")
    unet = unet.float()
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    bundle = export(tmp_path / "unet", tmp_path / "unet.bundle", precisions=("fp32",))
    feed = make_feed("rare", unet)
    fp32, fp64 = run_unet(unet, feed, torch.float32), run_unet(unet.double(), feed, torch.float64)
    found = open_portable(bundle)["unet"]({name: value.numpy() for name, value in feed.items()})
    compare("UNet2DConditionModel", "rare", "onnx", "sample", found["out_sample"], fp32, fp64)


def make_dit_feed(case: str, dit: nn.Module, width: int) -> dict[str, torch.Tensor]:
    """Two rows, of which one has padding."""
    side, context = dit.config.sample_size, dit.config.caption_channels or dit.config.cross_attention_dim
    feed = {
        "sample": draw(2, 4, side, width),
        "timestep": torch.tensor([999.0, 37.0]),
        "encoder_states": draw(2, 9, context),
        "lengths": torch.tensor([9, 4]),
    }
    if dit.config.use_additional_conditions:
        feed |= {"resolution": torch.tensor([[512.0, 768], [640, 480]]), "aspect_ratio": torch.tensor([[0.6], [1.3]])}
    return feed


def run_dit(dit: nn.Module, feed: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    sizes = {key: feed[key].to(dtype) for key in ("resolution", "aspect_ratio") if key in feed}
    with torch.no_grad():
        out: torch.Tensor = dit(
            feed["sample"].to(dtype),
            timestep=feed["timestep"],
            encoder_hidden_states=feed["encoder_states"].to(dtype),
            encoder_attention_mask=(torch.arange(9) < feed["lengths"][:, None]).to(dtype),
            added_cond_kwargs=sizes or {"resolution": None, "aspect_ratio": None},
        ).sample
    return out


@pytest.mark.parametrize("case", DITS)
def test_dit(case: str, model_folder: Path) -> None:
    """Heights of the training and other widths: positions are scaled."""
    dit = make_dit(**DITS[case])
    dit.save_pretrained(model_folder)
    feed = make_dit_feed(case, dit, dit.config.sample_size + 8)
    fp32 = run_dit(dit, feed, torch.float32)
    fp64 = run_dit(copy.deepcopy(dit).double(), feed, torch.float64)
    (graph,) = build(model_folder).values()
    assert [tensor.name for tensor in graph.inputs] == list(feed)
    with torch.no_grad():
        ours = graph.module(*feed.values()).numpy()
    compare("PixArtTransformer2DModel", case, "torch", "sample", ours, fp32, fp64)
    spec = read_spec(model_folder)
    assert count_parameters(spec)["dit"] == sum(p.numel() for p in dit.parameters())
    unmasked = graph.module(*(feed | {"lengths": torch.tensor([9, 9])}).values()).detach().numpy()
    assert np.abs(unmasked - ours)[1].max() > 1e-3, "the mask changes nothing, and would prove nothing"


def test_size_conditions_that_nobody_named(model_folder: Path) -> None:
    """The library saves what it was not told as null, and takes conditions where a picture has 1,024 pixels."""
    dit = make_dit(sample_size=128, patch_size=16, caption_channels=20, cross_attention_dim=48)
    dit.save_pretrained(model_folder)
    assert json.loads((model_folder / "config.json").read_text())["use_additional_conditions"] is None
    sizes = {"resolution": torch.tensor([[512.0, 768], [640, 480]]), "aspect_ratio": torch.tensor([[0.6], [1.3]])}
    feed = make_dit_feed("by default", dit, 128) | sizes
    (graph,) = build(model_folder).values()
    assert [tensor.name for tensor in graph.inputs] == list(feed)
    with torch.no_grad():
        ours = graph.module(*feed.values()).numpy()
    fp32, fp64 = run_dit(dit, feed, torch.float32), run_dit(copy.deepcopy(dit).double(), feed, torch.float64)
    compare("PixArtTransformer2DModel", "sizes by default", "torch", "sample", ours, fp32, fp64)


def test_dit_as_a_graph(tmp_path: Path) -> None:
    dit = make_dit(**DITS["sizes"])
    dit.save_pretrained(tmp_path / "dit")
    size = {"height": Dim(min=12, opt=12, max=12), "width": Dim(min=20, opt=20, max=20)}
    bundle = export(tmp_path / "dit", tmp_path / "dit.bundle", precisions=("fp32",), dims=size)
    feed = make_dit_feed("sizes", dit, 20)
    fp32, fp64 = run_dit(dit, feed, torch.float32), run_dit(dit.double(), feed, torch.float64)
    found = open_portable(bundle)["dit"]({name: value.numpy() for name, value in feed.items()})
    compare("PixArtTransformer2DModel", "sizes", "onnx", "sample", found["out_sample"], fp32, fp64)
    with pytest.raises(SpecError, match="its position table is made for it"):
        override_spec(read_spec(tmp_path / "dit"), dims={"width": Dim(min=12, opt=20, max=20)})


MUTANTS = {
    "heads taken for their width": {"num_heads": (8, 8, 8)},
    "eps of another model": {"norm_eps": 1e-6},
    "sine before cosine": {"flip_sin_to_cos": False},
    "frequencies shifted": {"freq_shift": 1.0},
    "the other padding": {"downsample_padding": 0},
    "middle not scaled": {"mid_block_scale_factor": 1.1},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_unet_is_noticed(mutant: str, model_folder: Path) -> None:
    unet = make_unet(**UNETS["sd1"])
    unet.save_pretrained(model_folder)
    feed = make_feed("sd1", unet)
    fp32, fp64 = run_unet(unet, feed, torch.float32), run_unet(copy.deepcopy(unet).double(), feed, torch.float64)
    spec = read_spec(model_folder)
    wrong = spec.components["unet"].model_copy(update=MUTANTS[mutant])
    graph = build(model_folder, spec.model_copy(update={"components": {"unet": wrong}}))["unet"]
    assert isinstance(graph.module, UNet)
    with torch.no_grad(), pytest.raises(AssertionError, match="more than"):
        compare("mutant", mutant, "torch", "sample", graph.module(*feed.values()).numpy(), fp32, fp64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks of another kind": ({"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 3}, "'down_block_types' names"),
    "dual attention": ({"dual_cross_attention": True}, "'dual_cross_attention' is True"),
    "class embedding": ({"class_embed_type": "timestep"}, "'class_embed_type' is 'timestep'"),
    "added image": ({"addition_embed_type": "image"}, "'addition_embed_type' is 'image'"),
    "guidance embedding": ({"time_cond_proj_dim": 8}, "'time_cond_proj_dim' is 8"),
    "activation": ({"act_fn": "mish"}, "'act_fn' is 'mish'"),
    "texts of several widths": ({"cross_attention_dim": [24, 32, 24]}, "'cross_attention_dim' differs"),
    "heads that do not divide": (
        {"attention_head_dim": 5},
        "components.unet: num_heads 5 does not divide",
    ),
    "groups that do not divide": (
        {"norm_num_groups": 5},
        "components.unet: norm_num_groups 5 does not divide",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_that_is_not_implemented(case: str, model_folder: Path) -> None:
    changes, message = REFUSED[case]
    make_unet(**UNETS["sd1"]).save_config(model_folder)
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises((CheckpointError, SpecError), match=message):
        read_spec(model_folder)


def test_tensors_that_do_not_fit(model_folder: Path) -> None:
    make_unet(**UNETS["no_middle"]).save_pretrained(model_folder)
    path = model_folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"}, path)
    with pytest.raises(WeightsError, match=r"lacks the tensor 'conv_in\.bias'"):
        build(model_folder)
    save_file(tensors | {"conv_in.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"'unet\.conv_in\.bias' has the wrong shape"):
        build(model_folder)
    save_file(tensors | {"mid_block.attentions.0.norm.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="has no place in the model"):
        build(model_folder)
