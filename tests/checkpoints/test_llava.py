"""LLaVA against transformers: which features are read, several pictures in a prompt, the cache, and `run` on a file."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from engines.runtime import load
from engines.runtime.answer import Request
from exporters.checkpoints import open_checkpoint
from specs.bundle.files import read_manifest
from specs.errors import InputError, MetagenError
from specs.graphs import count_parameters
from specs.handlers import get_handler
from tests.checkpoints.compare import ROWS, compare, enliven, export, open_portable, record_tokens
from tests.checkpoints.support import build, edit_config
from tests.checkpoints.test_decoder_text import save_fast, train_bytes

IMAGE = 400  # the token, behind those of the tokenizer
TEXTS = {
    "Llama": (hf.LlamaConfig, {"num_key_value_heads": 1}),
    "Mistral": (hf.MistralConfig, {"sliding_window": 9, "num_key_value_heads": 2, "head_dim": 10}),
    "Qwen2": (hf.Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "Gemma2": (hf.Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 1.5}),
}
TOWERS = {
    "CLIP": (hf.CLIPVisionConfig, {"image_size": 12, "patch_size": 4}),
    "SigLIP": (hf.SiglipVisionConfig, {"image_size": 15, "patch_size": 5}),
}
TINY_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
} | {
    "image_size": 12,
    "patch_size": 4,
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CLIP, Llama": ("CLIP", "Llama", {}),
    "CLIP, Mistral, whole": (
        "CLIP",
        "Mistral",
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "multimodal_projector_bias": False},
    ),
    "CLIP, Llama, several layers": ("CLIP", "Llama", {"vision_feature_layer": [1, -2, 0]}),
    "SigLIP, Qwen 2": (
        "SigLIP",
        "Qwen2",
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu_new"},
    ),
    "CLIP, Gemma 2": ("CLIP", "Gemma2", {"vision_feature_layer": -1}),
    "SigLIP, Llama, first token away": ("SigLIP", "Llama", {"vision_feature_layer": 2}),
}
STEPS = 5


def make_model(name: str, **of_text: Any) -> Any:
    tower, text, options = CASES[name]
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    kind, given = TOWERS[tower]
    vision_config = kind(**sizes, **given)
    kind, given = TEXTS[text]
    text_config = kind(
        vocab_size=401,
        max_position_embeddings=96,
        pad_token_id=0,
        **{**sizes, "num_hidden_layers": 2},
        **given,
        **of_text,
    )
    config = hf.LlavaConfig(vision_config=vision_config, text_config=text_config, image_token_index=IMAGE, **options)
    return enliven(hf.LlavaForConditionalGeneration(config), scale=1.3)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """With a processor that leaves pixels as they are, so that both sides read the same."""
    model.save_pretrained(folder, **options)
    processor = {"image_processor_type": "CLIPImageProcessor"}
    steps = ("do_resize", "do_center_crop", "do_normalize", "do_convert_rgb")
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **dict.fromkeys(steps, False)}))
    return folder


def make_prompts(pieces: int, edge: int) -> tuple[list[Tensor], Tensor]:
    """A row with two pictures, and one with one."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 100, (12,), generator=generator)
    picture = torch.full((pieces,), IMAGE)
    rows = [torch.cat([text[:2], picture, text[2:5], picture, text[5:9]]), torch.cat([text[9:], picture, text[:3]])]
    return rows, torch.rand(3, 3, edge, edge, generator=generator)


def run_library(model: Any, rows: list[Tensor], pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in fp32 and fp64, and greedy tokens, [steps, rows, ...]."""
    wide = copy.deepcopy(model).double()
    shares, fp32, fp64, tokens = (pixels[:2], pixels[2:]), [], [], []
    with torch.no_grad():
        for _ in range(STEPS):
            pairs = list(zip(rows, shares, strict=True))
            fp32.append(torch.stack([model(row[None], pixel_values=x).logits[0, -1] for row, x in pairs]))
            fp64.append(torch.stack([wide(row[None], pixel_values=x.double()).logits[0, -1] for row, x in pairs]))
            tokens.append(fp64[-1].argmax(-1))
            rows = [torch.cat([row, token[None]]) for row, token in zip(rows, tokens[-1], strict=True)]
    return torch.stack(fp32), torch.stack(fp64), torch.stack(tokens)


def run_ours(graphs: list[Any], rows: list[Tensor], image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pictures to embeddings, a padded batch of prompts, the cache. Padding that looks like pictures is harmless."""
    encode, project, prefill, decode = graphs
    embeddings = project(encode(image))
    pieces, width = embeddings.shape[1:]
    given = torch.full((2, 2 * pieces, width), 7.0)
    given[0], given[1, :pieces] = embeddings[:2].flatten(0, 1), embeddings[2]
    lengths = torch.tensor([len(row) for row in rows])
    logits, *cache = prefill(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IMAGE), lengths, given)
    cache = [nn.functional.pad(part, (0, 0, 0, 64 - part.shape[2])) for part in cache]
    found, tokens = [logits], [logits.argmax(-1)]
    for step in range(STEPS - 1):
        logits, *cache = decode(tokens[-1][:, None], lengths + step, *cache)
        found.append(logits)
        tokens.append(logits.argmax(-1))
    return torch.stack(found).numpy(), torch.stack(tokens).numpy()


def check(name: str, stage: str, model: Any, graphs: list[Any], pieces: int) -> None:
    rows, pixels = make_prompts(pieces, model.config.vision_config.image_size)
    fp32, fp64, tokens = run_library(model, rows, pixels)
    with torch.no_grad():
        ours, chosen = run_ours(graphs, rows, pixels)
    compare("LLaVA", name, stage, "logits", ours, fp32, fp64)
    record_tokens("LLaVA", name, chosen, tokens.numpy())


def count_pieces(graphs: Any) -> int:
    return int(graphs[1].outputs[0].shape[1])


@pytest.mark.parametrize("name", CASES)
def test_torch_equals_transformers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    spec, graphs = build(save(model, tmp_path / "model"))
    counted = {graph.component: sum(p.numel() for p in graph.module.parameters()) for graph in graphs}
    assert counted == count_parameters(spec)
    check(name, "torch", model, [graph.module for graph in graphs], count_pieces(graphs))


def test_what_is_not_read_is_explained(tmp_path: Path) -> None:
    unused = open_checkpoint(save(make_model("SigLIP, Llama, first token away"), tmp_path / "model")).unused
    reasons = set(unused.values())
    assert reasons == {
        "behind the last layer whose features are read",
        "the projector reads tokens, not what is pooled from them",
    }


def test_a_cap_on_the_logits_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's own head has one; LLaVA's has none, whatever its text_config says."""
    monkeypatch.delenv(ROWS, raising=False)
    model = make_model("CLIP, Gemma 2")
    checkpoint = open_checkpoint(save(model, tmp_path / "model"))
    capped = checkpoint.spec.components["decoder"].model_copy(update={"logit_softcap": 1.5})
    components = {**checkpoint.spec.components, "decoder": capped}
    spec = checkpoint.spec.model_copy(update={"components": components})
    graphs = get_handler(spec).build(spec, parameters=checkpoint.source)
    with pytest.raises(AssertionError, match="more than"):
        check("mutant, cap", "mutant", model, [graph.module for graph in graphs], 9)


@pytest.mark.parametrize(
    ("mutant", "changes"),
    [
        ("layer", {"feature_layers": [1]}),
        ("activation", {"activation": "gelu_tanh"}),
        ("first token", {"skip_tokens": 0}),
        ("image token", {"image_token": 399}),
    ],
)
def test_the_comparison_would_notice(
    mutant: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROWS, raising=False)
    model = make_model("CLIP, Llama")
    folder = save(model, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    projector = checkpoint.spec.components["projector"]
    changed = type(projector).model_validate({**projector.model_dump(), **changes})
    components = {**checkpoint.spec.components, "projector": changed}
    spec = checkpoint.spec.model_copy(update={"components": components})
    graphs = get_handler(spec).build(spec, parameters=checkpoint.source)
    with pytest.raises(AssertionError):
        check(f"mutant, {mutant}", "mutant", model, [graph.module for graph in graphs], 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_feature_layer": 9}, "'vision_feature_layer' names no layer of the image tower"),
        ({"vision_feature_select_strategy": "mean"}, "'vision_feature_select_strategy' is 'mean'"),
        ({"text_config": {"model_type": "opt"}}, "'model_type' is 'opt'"),
        ({"vision_config": {"model_type": "pixtral"}}, "'model_type' is 'pixtral'"),
        ({"vision_config": {**TINY_TOWER, "patch_size": 32}}, "patch_size 32 is larger than image_size 12"),
        ({"image_token_index": 401}, "the image token is outside the decoder's vocabulary"),
        ({"multimodal_projector_bias": False}, "has no place in the model that its config describes"),
        ({"vision_config": {**TINY_TOWER, "num_hidden_layers": 2}}, "has no place in the model that its config"),
    ],
)
def test_a_config_that_is_not_followed(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(make_model("CLIP, Llama"), tmp_path / "model")
    edit_config(folder, **changes)
    with pytest.raises(MetagenError) as caught:
        build(folder)
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A small LLaVA in bfloat16 and in shards, whose tokenizer knows <image>; the library's model and tokenizer."""
    folder = tmp_path_factory.mktemp("llava") / "looker"
    tokenizer = train_bytes()
    tokenizer.add_special_tokens(["<image>"])
    fast = save_fast(tokenizer, folder)
    image_token = fast.convert_tokens_to_ids("<image>")
    assert image_token == IMAGE
    model = make_model("SigLIP, Qwen 2", eos_token_id=[2, 77]).to(torch.bfloat16)
    save(model, folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return export(folder, folder.with_suffix(".bundle")), model, fast


def test_onnx_equals_transformers(bundle: tuple[Path, Any, Any]) -> None:
    graphs = open_portable(bundle[0])
    manifest = {graph.name: graph for graph in read_manifest(bundle[0]).graphs}

    def call(name: str, *given: Tensor) -> list[Tensor]:
        feed = {tensor.name: x.numpy() for tensor, x in zip(manifest[name].inputs, given, strict=True)}
        return [torch.from_numpy(x) for x in graphs[name](feed).values()]

    functions = [
        lambda x: call("image_encoder", x)[0],
        lambda x: call("projector", x)[0],
        lambda *given: call("decoder.prefill", *given),
        lambda *given: call("decoder.decode", *given),
    ]
    check("SigLIP, Qwen 2, bf16, shards", "onnx", bundle[1], functions, 9)


def test_pictures_and_a_prompt_become_text(bundle: tuple[Path, Any, Any]) -> None:
    path, model, tokenizer = bundle
    generator = np.random.default_rng(0)
    images = [generator.random((15, 15, 3), dtype=np.float32) for _ in range(2)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with load(path) as session:
        for prompt, count in (("<image>The quick<image> brown", 2), ("The quick brown", 1)):
            ours = list(session.pipeline.stream_tokens(prompt, images[:count], max_new_tokens=8))
            asked = prompt if "<image>" in prompt else f"<image>{prompt}"
            ids = tokenizer(asked.replace("<image>", "<image>" * 9), return_tensors="pt")["input_ids"]
            theirs = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels[:count],
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=[2, 77],
                pad_token_id=0,
            )
            assert ours == theirs[0, ids.shape[1] :].tolist()
        assert session.pipeline._end_tokens == (2, 77)
        with pytest.raises(InputError, match="the prompt speaks of another number of media"):
            session.pipeline.stream_tokens("<image> and <image>", images[:1])
        with pytest.raises(InputError, match="this bundle takes pictures, and one prompt about them"):
            session.pipeline.answer(Request())
        assert "".join(session.pipeline.stream("The quick", [], max_new_tokens=3))


def test_run_on_a_picture(bundle: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, _, _ = bundle
    picture = tmp_path / "picture.ppm"
    pixels = np.random.default_rng(0).integers(0, 256, (15, 15, 3), dtype=np.uint8)
    picture.write_bytes(b"P6 15 15 255\n" + pixels.tobytes())
    with load(path) as session:
        text = "".join(session.pipeline.stream("The quick brown", [picture]))
    command = [sys.executable, "-m", "metagen_deploy", "run", str(path), str(picture), "--prompt", "The quick brown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text + "\n"
