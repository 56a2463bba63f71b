"""Weights, example inputs, calibration and evaluation data: what is taken, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specs.errors import CalibrationError, WeightsError
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import CalibrationSpec, Dim, EvaluationSpec, Spec, WeightsSpec

TINY = ("image_vit_base:tiny", "image_vit_digits", "text_llm_tiny:tiny", "multimodal_clip:tiny")
DIGITS = load_spec("image_vit_digits")
WEIGHTS = Path(DIGITS.weights.source)


def with_weights(path: Path) -> Spec:
    return DIGITS.model_copy(update={"weights": WeightsSpec(source=str(path))})


def refuse(spec: Spec) -> str:
    with pytest.raises(WeightsError) as caught:
        get_handler(spec).build(spec)
    return str(caught.value)


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


def test_missing_file(tmp_path: Path) -> None:
    assert refuse(with_weights(tmp_path / "no.safetensors")) == (
        f"the weights file does not exist\n  where:   {tmp_path / 'no.safetensors'}\n  fix:     correct weights.source"
    )


@pytest.mark.parametrize("keep", [0, 4, 100, 1000, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:keep])
    text = refuse(with_weights(path))
    assert text.startswith(f"the weights file is truncated, or is not safetensors\n  where:   {path}\n  got:     ")
    assert text.endswith("\n  fix:     copy or download it again, or convert it again")


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    assert refuse(with_weights(tmp_path / "w.pt")) == (
        "weights in '.pt' files are not read: they can hold code\n"
        f"  where:   {tmp_path / 'w.pt'}\n"
        "  allowed: .safetensors\n"
        "  fix:     convert once:"
        " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
    )


def test_pickle_with_another_name_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.safetensors")
    assert refuse(with_weights(tmp_path / "w.safetensors")).startswith("the weights file is truncated, or is not safe")


HEAD = "classifier.head.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {HEAD: None},
            (
                "the weights file lacks 1 of 56 tensors; the first is 'classifier.head.weight'\n"
                "  where:   PATH\n"
                "  fix:     use weights of this spec's sizes, named <component>.<parameter>"
            ),
        ),
        (
            {HEAD: None, "classifier.heads.weight": torch.zeros(10, 96)},
            (
                "the weights file lacks 1 of 56 tensors; the first is 'classifier.head.weight'\n"
                "  where:   PATH\n"
                "  got:     56 tensors; nearest to it: classifier.heads.weight"
                " (did you mean 'classifier.heads.weight'?)\n"
                "  fix:     use weights of this spec's sizes, named <component>.<parameter>"
            ),
        ),
        (
            {"classifier.layers.4.mlp.up.bias": torch.zeros(3)},
            (
                "the weights file has 1 tensors that the model does not;"
                " the first is 'classifier.layers.4.mlp.up.bias'\n"
                "  where:   PATH\n"
                "  got:     57 tensors\n"
                "  allowed: 56 tensors\n"
                "  fix:     remove them from the file, or correct the spec's sizes"
            ),
        ),
        (
            {HEAD: torch.zeros(96, 10)},
            (
                "'classifier.head.weight' has the wrong shape\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     [96, 10]\n"
                "  allowed: [10, 96], by the spec's sizes\n"
                "  fix:     correct the spec's sizes, or use the weights that belong to it"
            ),
        ),
        (
            {HEAD: torch.zeros(10, 96, dtype=torch.int8)},
            (
                "'classifier.head.weight' has the wrong type\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     int8\n"
                "  allowed: float32, float16, bfloat16\n"
                "  fix:     store it as one of these; quantisation happens at export"
            ),
        ),
        (
            {HEAD: torch.full((10, 96), torch.nan)},
            (
                "'classifier.head.weight' holds NaN or infinity\n"
                "  where:   tensor 'classifier.head.weight' of PATH\n"
                "  got:     960 of 960 values are not finite\n"
                "  fix:     train or convert again; these weights give no answers"
            ),
        ),
    ],
    ids=["missing", "renamed", "extra", "shape", "type", "nan"],
)
def test_weights_that_are_not_the_models(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {**load_file(WEIGHTS), **change}
    save_file({n: t for n, t in tensors.items() if t is not None}, path)
    assert refuse(with_weights(path)) == text.replace("PATH", str(path))


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
