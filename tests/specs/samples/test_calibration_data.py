"""Calibration and evaluation data: what is taken, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specs.errors import CalibrationError
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import CalibrationSpec, Dim, EvaluationSpec, Spec
from tests.specs.tiny import DIGITS, TINY


@pytest.mark.parametrize("name", TINY)
def test_calibration_gives_as_many_samples_as_asked(name: str) -> None:
    spec = load_spec(name)
    handler = get_handler(spec)
    for graph in handler.build(spec):
        batches = list(handler.load_calibration(spec, graph))
        assert sum(len(b[graph.inputs[0].name]) for b in batches) == spec.calibration.samples
        for batch in batches:
            assert list(batch) == [t.name for t in graph.inputs]
            assert all(batch[t.name].dtype == t.dtype for t in graph.inputs)
            with torch.no_grad():
                graph.module(*map(torch.from_numpy, batch.values()))


def test_labels_are_the_spec_s_own() -> None:
    spec = load_spec("image_vit_base:tiny")
    names = tuple(f"class {index}" for index in range(spec.components["classifier"].num_classes))  # type: ignore[union-attr]
    named = spec.model_copy(update={"labels": names})
    assert get_handler(named).describe_pipeline(named)["labels"] == list(names)


def test_random_calibration_never_repeats_itself() -> None:
    spec = load_spec("image_vit_base:tiny")
    spec = spec.model_copy(update={"dims": {"batch": Dim(min=1, opt=3, max=8)}})
    handler = get_handler(spec)
    (graph,) = handler.build(spec)
    samples = np.concatenate([batch["image"] for batch in handler.load_calibration(spec, graph)])
    assert len(np.unique(samples.reshape(len(samples), -1), axis=0)) == len(samples) > 3


def test_decode_is_calibrated_on_the_models_own_cache(tmp_path: Path) -> None:
    spec = load_spec("text_llm_tiny:tiny")
    ids = np.random.default_rng(0).integers(0, 512, (5, 6))
    np.savez(tmp_path / "c.npz", token_ids=ids, lengths=np.array([6, 2, 3, 4, 5]))
    spec = spec.model_copy(update={"calibration": CalibrationSpec(source=str(tmp_path / "c.npz"))})
    prefill, decode = get_handler(spec).build(spec)
    (first, *_) = get_handler(spec).load_calibration(spec, prefill)
    (step, *_) = get_handler(spec).load_calibration(spec, decode)
    with torch.no_grad():
        logits, keys, *_ = prefill.module(*map(torch.from_numpy, first.values()))
    assert np.array_equal(step["token_ids"][:, 0], logits.argmax(-1).numpy())
    assert np.allclose(step["past_keys_0"][:, :, :6], keys.numpy())
    np.savez(tmp_path / "c.npz", token_ids=ids, lengths=np.array([6, 2, 3, 4, 7]))
    with pytest.raises(CalibrationError, match="says more tokens than"):
        list(get_handler(spec).load_calibration(spec, decode))


def list_lengths(spec: Spec, name: str) -> list[int]:
    """How long the texts are that a graph is calibrated on."""
    handler = get_handler(spec)
    graph = next(graph for graph in handler.build(spec) if graph.name == name)
    return [int(length) for batch in handler.load_calibration(spec, graph) for length in batch["lengths"]]


@pytest.mark.parametrize(
    ("name", "graph"), [("text_llm_tiny:tiny", "decoder.decode"), ("audio_musicgen:tiny", "text_encoder")]
)
def test_random_texts_have_every_length(name: str, graph: str) -> None:
    """Few tokens make louder means of attention: an int8 range of full texts alone would cut them."""
    spec = load_spec(name)
    spec = spec.model_copy(update={"calibration": CalibrationSpec(samples=64)})
    assert set(list_lengths(spec, graph)) == set(range(1, 9))


def digits_graph(tmp_path: Path, **arrays: Any) -> tuple[Spec, GraphModule]:
    np.savez(tmp_path / "c.npz", **arrays)
    spec = DIGITS.model_copy(
        update={
            "calibration": CalibrationSpec(source=str(tmp_path / "c.npz")),
            "evaluation": EvaluationSpec(source=str(tmp_path / "c.npz")),
        }
    )
    return spec, get_handler(spec).build(spec)[0]


GOOD = np.full((4, 1, 8, 8), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            {"images": GOOD},
            (
                "the data has no array 'image'\n"
                "  where:   PATH\n"
                "  got:     images\n"
                "  allowed: image\n"
                "  fix:     save the arrays under the names of the graph's inputs"
            ),
        ),
        (
            {"image": GOOD[:, :, :7]},
            (
                "array 'image' has the wrong shape\n"
                "  where:   PATH\n"
                "  got:     [4, 1, 7, 8]\n"
                "  allowed: [samples, 1, 8, 8]\n"
                "  fix:     reshape or resize the samples"
            ),
        ),
        (
            {"image": GOOD[:0]},
            (
                "array 'image' is empty\n"
                "  where:   PATH\n"
                "  got:     [0, 1, 8, 8]\n"
                "  allowed: at least one sample\n"
                "  fix:     save some samples"
            ),
        ),
        (
            {"image": GOOD.astype(np.float64)},
            (
                "array 'image' has the wrong type\n"
                "  where:   PATH\n"
                "  got:     float64\n"
                "  allowed: float32\n"
                "  fix:     convert it: image.astype('float32')"
            ),
        ),
        (
            {"image": GOOD * np.nan},
            (
                "array 'image' holds NaN or infinity\n"
                "  where:   PATH\n"
                "  got:     256 values\n"
                "  allowed: finite values\n"
                "  fix:     remove these samples"
            ),
        ),
        (
            {"image": GOOD * 255},
            (
                "array 'image' holds values out of range\n"
                "  where:   PATH\n"
                "  got:     127.5 to 127.5\n"
                "  allowed: 0 to 1\n"
                "  fix:     correct the samples; pixels are 0 to 1, the graph normalises them"
            ),
        ),
    ],
    ids=["name", "shape", "empty", "type", "nan", "range"],
)
def test_calibration_data_of_another_kind(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    spec, graph = digits_graph(tmp_path, **arrays)
    with pytest.raises(CalibrationError) as caught:
        list(get_handler(spec).load_calibration(spec, graph))
    assert str(caught.value) == text.replace("PATH", str(tmp_path / "c.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x93NUMPY\x01\x00"])
def test_calibration_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    spec, graph = digits_graph(tmp_path, image=GOOD)
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="the data file is truncated, or is not a .npz of plain arrays"):
        list(get_handler(spec).load_calibration(spec, graph))


def test_calibration_file_with_pickled_objects_or_cut_short(tmp_path: Path) -> None:
    spec, graph = digits_graph(tmp_path, image=np.array([{}], dtype=object))
    with pytest.raises(CalibrationError, match="not a .npz of plain arrays"):
        list(get_handler(spec).load_calibration(spec, graph))
    np.savez(tmp_path / "c.npz", image=GOOD)
    whole = (tmp_path / "c.npz").read_bytes()
    for keep in range(0, len(whole), 97):
        (tmp_path / "c.npz").write_bytes(whole[:keep])
        with pytest.raises(CalibrationError):
            list(get_handler(spec).load_calibration(spec, graph))


def test_static_batch_is_filled_from_the_beginning(tmp_path: Path) -> None:
    shades = (GOOD * np.arange(len(GOOD), dtype=np.float32)[:, None, None, None] / 4).astype(np.float32)
    spec, graph = digits_graph(tmp_path, image=shades)
    spec = spec.model_copy(update={"dims": {"batch": Dim(min=3, opt=3, max=3)}})
    batches = [batch["image"] for batch in get_handler(spec).load_calibration(spec, graph)]
    assert [len(batch) for batch in batches] == [3, 3]
    assert np.array_equal(np.concatenate(batches), shades[[0, 1, 2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"token_ids": "vocabulary"}, "array 'token_ids' holds values out of range"),
        ({"token_ids": "wide"}, "array 'token_ids' has the wrong shape"),
        ({"lengths": 0}, "array 'lengths' holds values out of range"),
        ({"lengths": 9}, "array 'lengths' says more tokens than 'token_ids' has"),
        ({}, ""),
    ],
)
def test_prompts_that_the_model_cannot_read(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    spec = load_spec("text_llm_tiny:tiny")
    vocabulary = spec.components["decoder"].vocab_size  # type: ignore[union-attr]
    ids, lengths = np.full((2, 8), vocabulary - 1), np.array([8, 1])
    if changes.get("token_ids") == "wide":
        ids = np.zeros((2, spec.dims["tokens"].max + 1), np.int64)
    elif changes:
        (ids if "token_ids" in changes else lengths)[0] = vocabulary if "token_ids" in changes else changes["lengths"]
    np.savez(tmp_path / "c.npz", token_ids=ids, lengths=lengths)
    spec = spec.model_copy(update={"calibration": CalibrationSpec(source=str(tmp_path / "c.npz"))})
    handler = get_handler(spec)
    graph = handler.build(spec)[0]
    if not problem:
        assert sum(len(batch["lengths"]) for batch in handler.load_calibration(spec, graph)) == 2
        return
    with pytest.raises(CalibrationError) as caught:
        list(handler.load_calibration(spec, graph))
    assert caught.value.problem == problem


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.zeros(3, np.int64), "the arrays have different numbers of samples"),
        (np.zeros(4, np.float32), "array 'labels' is not one class index a sample"),
        (np.zeros((4, 1), np.int64), "array 'labels' is not one class index a sample"),
        (np.array([0, 1, 2, 10]), "array 'labels' names a class that the model does not have"),
        (np.array([0, 1, 2, -1]), "array 'labels' names a class that the model does not have"),
    ],
)
def test_labels_of_another_kind(tmp_path: Path, labels: Any, problem: str) -> None:
    spec, graph = digits_graph(tmp_path, image=GOOD, labels=labels)
    with pytest.raises(CalibrationError) as caught:
        get_handler(spec).load_evaluation(spec, graph)
    assert caught.value.problem == problem
