"""Handlers: weights from their sources, example inputs, and what a pipeline is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specs.handlers import get_handler
from specs.load import load_spec
from specs.schema import WeightsSpec
from tests.specs.tiny import DIGITS, TINY, WEIGHTS, with_weights


def test_shipped_weights_read_held_out_digits() -> None:
    graph = get_handler(DIGITS).build(DIGITS)[0]
    data = get_handler(DIGITS).load_evaluation(DIGITS, graph)
    assert data is not None
    inputs, labels = data
    assert inputs["image"].shape == (360, 1, 8, 8)
    assert np.bincount(labels).min() >= 34, "every digit is held out"
    with torch.no_grad():
        top1 = (graph.module(torch.from_numpy(inputs["image"])).argmax(1).numpy() == labels).mean()
    assert top1 >= 0.99
    assert WEIGHTS.stat().st_size < 2_000_000


def test_calibration_digits_are_not_held_out() -> None:
    held_out = {image.tobytes() for image in np.load(DIGITS.evaluation.source)["image"]}  # type: ignore[union-attr]
    assert not any(image.tobytes() in held_out for image in np.load(DIGITS.calibration.source)["image"])


def test_random_weights_follow_the_seed() -> None:
    spec = load_spec("text_llm_tiny:tiny")

    def build(seed: int) -> torch.Tensor:
        graph = get_handler(spec).build(spec.model_copy(update={"weights": WeightsSpec(seed=seed)}))[0]
        return torch.cat([p.flatten() for p in graph.module.parameters()])

    assert torch.equal(build(0), build(0))
    assert not torch.equal(build(0), build(1))
    assert torch.isfinite(build(0)).all()


def test_graphs_of_one_component_share_parameters() -> None:
    spec = load_spec("text_llm_tiny:tiny")
    prefill, decode = get_handler(spec).build(spec)
    assert {id(p) for p in prefill.module.parameters()} == {id(p) for p in decode.module.parameters()}
    assert not prefill.module.training


def test_build_in_float64_for_the_noise_floor() -> None:
    graph = get_handler(DIGITS).build(DIGITS, dtype=torch.float64)[0]
    assert {p.dtype for p in graph.module.parameters()} == {torch.float64}
    assert graph.module(torch.rand(2, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({n: t.to(dtype) for n, t in load_file(WEIGHTS).items()}, tmp_path / "w.safetensors")
    spec = with_weights(tmp_path / "w.safetensors")
    assert {p.dtype for p in get_handler(spec).build(spec)[0].module.parameters()} == {dtype}
    asked = get_handler(spec).build(spec, dtype=torch.float32)[0].module
    assert {p.dtype for p in asked.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", TINY)
def test_example_inputs_are_seeded_typed_and_in_range(name: str) -> None:
    spec = load_spec(name)
    handler, sizes = get_handler(spec), {"batch": 6, "tokens": 9, "cache": 12}
    for graph in handler.build(spec):
        inputs = handler.make_inputs(spec, graph, sizes=sizes, seed=3)
        again = handler.make_inputs(spec, graph, sizes=sizes, seed=3)
        other = handler.make_inputs(spec, graph, sizes=sizes, seed=4)
        assert list(inputs) == [t.name for t in graph.inputs]
        for tensor in graph.inputs:
            value = inputs[tensor.name]
            assert value.dtype == tensor.dtype
            assert value.shape == tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
            assert np.array_equal(value, again[tensor.name])
            if tensor.name in ("image", "token_ids"):
                assert tensor.low <= value.min() <= value.max() < tensor.high
        assert any(not np.array_equal(inputs[n], other[n]) for n in inputs)


def test_decoder_examples_are_ragged_and_empty_beyond_their_length() -> None:
    spec = load_spec("text_llm_tiny:tiny")
    handler = get_handler(spec)
    prefill, decode = handler.build(spec)
    lengths = handler.make_inputs(spec, prefill, sizes={"batch": 6, "tokens": 9}, seed=0)["lengths"]
    assert lengths.max() == 9
    assert 1 <= lengths.min() < 9
    inputs = handler.make_inputs(spec, decode, sizes={"batch": 6, "cache": 12}, seed=0)
    assert 1 <= inputs["lengths"].min() < inputs["lengths"].max() == 11, "room for the token that is written"
    for row, length in enumerate(inputs["lengths"]):
        assert inputs["past_values_1"][row, :, :length].all()
        assert not inputs["past_values_1"][row, :, length:].any()


def test_clip_texts_end_and_are_padded_with_zeros() -> None:
    spec = load_spec("multimodal_clip:tiny")
    graph = get_handler(spec).build(spec)[1]
    ids = get_handler(spec).make_inputs(spec, graph, sizes={"batch": 8}, seed=0)["token_ids"]
    ends = ids.argmax(1)
    assert len(set(ends)) > 2
    assert (ids.max(1) == 511).all()
    assert all(not ids[row, end + 1 :].any() for row, end in enumerate(ends))


def test_seeded_weights_keep_activations_near_unit_variance_and_leave_nothing_out() -> None:
    """A bias of zero or a scale of one could be lost without a difference."""
    spec = load_spec("multimodal_clip:tiny")
    for graph in get_handler(spec).build(spec):
        for name, parameter in graph.module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                assert abs(float(parameter.mean()) - 1) < 0.02 and float(parameter.std()) > 0, name
            elif name.endswith("bias"):
                assert float(parameter.abs().max()) > 0, name
            elif parameter.dim() == 2 and "embedding" not in name:
                assert float(parameter.std()) * parameter.shape[1] ** 0.5 == pytest.approx(0.95, abs=0.08), (
                    name
                )  # cut at two sigma


def test_pipelines() -> None:
    describe = {name: get_handler(s := load_spec(name)).describe_pipeline(s) for name in TINY}
    assert describe["image_vit_digits"] == {
        "kind": "image-classification",
        "graph": "classifier",
        "image": {"height": 8, "width": 8, "channels": 1},
        "labels": list("0123456789"),
    }
    assert describe["text_llm_tiny:tiny"] == {
        "kind": "text-generation",
        "prefill": "decoder.prefill",
        "decode": "decoder.decode",
        "num_layers": 2,
        "tokenizer": {"kind": "bytes"},
        "vocab_size": 512,
        "max_cache": 64,
    }
    assert describe["multimodal_clip:tiny"] == {
        "kind": "image-text-similarity",
        "image_encoder": "image_encoder",
        "text_encoder": "text_encoder",
        "fusion": "fusion",
        "fusion_kind": "fusion.late",
        "image": {"height": 32, "width": 32, "channels": 3},
        "tokenizer": {"kind": "bytes", "context_length": 16, "end_of_text": 511},
    }
