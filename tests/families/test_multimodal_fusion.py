"""A row is what the model without its missing modalities says, whatever stands in their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from specs.errors import SpecError
from specs.models.fusion import multimodal
from specs.schema import Spec
from tests.families.fusion_support import (
    NAMES,
    STRATEGIES,
    TEXT,
    build_graph,
    export_graph,
    get_fusion,
    make_feed,
    make_spec,
    run_without,
    spoil_missing,
)

#: Every subset of three modalities but none, one a row, so that each batch is mixed.
SUBSETS = [[bool(bits >> m & 1) for m in range(3)] for bits in range(1, 8)]
#: What may stand where a modality is missing.
GARBAGE = (np.nan, np.inf, -np.inf, 3e38)


def run_float64(spec: Spec, feed: dict[str, Any], module: multimodal.MultimodalFusion) -> list[np.ndarray[Any, Any]]:
    with torch.inference_mode():
        return [value.numpy() for value in module(*map(torch.from_numpy, feed.values()))]


def make_wide(strategy: str) -> tuple[Spec, multimodal.MultimodalFusion, dict[str, Any]]:
    """The fusion and its inputs in float64, so that nothing but a leak makes a difference."""
    spec = make_spec(strategy)
    graph = build_graph(spec, "fusion")
    feed = make_feed(spec, graph, SUBSETS)
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in feed.items()}
    return spec, get_fusion(graph).double(), wide


def measure_leak(strategy: str, garbage: float) -> float:
    """Largest difference of any row's answer from the model without what is missing in it; infinite where NaN."""
    spec, module, feed = make_wide(strategy)
    answers = run_float64(spec, spoil_missing(feed, garbage), module)[0]
    if not np.isfinite(answers).all():
        return np.inf
    return max(float(np.abs(answers[i] - run_without(spec, module, feed, i)[0]).max()) for i in range(len(SUBSETS)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_row_equals_the_model_without_what_is_missing(strategy: str, garbage: float) -> None:
    assert measure_leak(strategy, garbage) < 1e-13


def multiply_by_mask(condition: Tensor, kept: Tensor, zero: Tensor) -> Tensor:
    return kept * condition.to(kept.dtype)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_that_multiplies_would_be_noticed(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 times NaN is NaN."""
    monkeypatch.setattr(multimodal.torch, "where", multiply_by_mask)
    monkeypatch.setattr(multimodal, "make_bias", lambda visible, dtype: (visible.to(dtype) - 1)[:, None, None] * 1e30)
    assert measure_leak(strategy, np.nan) == np.inf
    assert measure_leak(strategy, 1.0) < 1e-10, "the mutant must differ in nothing else"


@pytest.mark.parametrize("strategy", ["early", "middle"])
def test_a_mask_that_softmax_does_not_see_would_be_noticed(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "make_bias", lambda visible, dtype: torch.zeros(len(visible), 1, 1, 1, dtype=dtype))
    assert measure_leak(strategy, 1.0) > 1e-3


def test_a_mean_over_missing_tokens_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "pool_tokens", lambda one: one.tokens.mean(dim=1))
    assert measure_leak("late", 1.0) > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_at_all_is_finite(strategy: str) -> None:
    spec, module, _ = make_wide(strategy)
    feed = make_feed(spec, build_graph(spec, "fusion"), [[False] * 3])
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in feed.items()}
    assert all(np.isfinite(value).all() for value in run_float64(spec, spoil_missing(wide, np.nan), module))


@pytest.fixture(scope="module", params=list(STRATEGIES))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Spec, Any, onnxruntime.InferenceSession]:
    spec = make_spec(request.param)
    graph = build_graph(spec, "fusion")
    return spec, graph, export_graph(spec, graph, tmp_path_factory.mktemp(request.param))


def test_the_exported_graph_takes_any_mixture(exported: tuple[Spec, Any, onnxruntime.InferenceSession]) -> None:
    """Every subset in one batch, NaN where something is missing, against torch without the mask."""
    spec, graph, session = exported
    feed = make_feed(spec, graph, SUBSETS, seed=3)
    answers = session.run(None, spoil_missing(feed, np.nan))[0]
    expected = np.stack([run_without(spec, get_fusion(graph), feed, i)[0] for i in range(len(SUBSETS))])
    rms = float(np.sqrt((expected**2).mean()))
    assert np.abs(answers - expected).max() < 5e-6 * rms
    whole = make_feed(spec, graph, [[True] * 3] * len(SUBSETS), seed=3)
    changed = np.abs(session.run(None, whole)[0] - answers).max(axis=1)
    assert (changed[:-1] > 1e-3 * rms).all(), "a missing modality makes a difference"
    assert changed[-1] == 0, "the row that has them all"


def test_exported_weights_are_what_was_looked_at(exported: tuple[Spec, Any, onnxruntime.InferenceSession]) -> None:
    spec, graph, session = exported
    names = [output.name for output in session.get_outputs()]
    strategy = spec.components["fusion"].strategy  # type: ignore[attr-defined]
    if strategy == "late":
        assert names == ["logits"]
        return
    feed = make_feed(spec, graph, SUBSETS)
    outputs = dict(zip(names, session.run(None, spoil_missing(feed, np.nan)), strict=True))
    assert names[1:] == ([f"{name}_weights" for name in NAMES] if strategy == "middle" else ["weights"])
    for name in names[1:]:
        total = outputs[name].sum(axis=-1)
        assert np.isfinite(outputs[name]).all()
        assert ((np.abs(total - 1) < 1e-5) | (total == 0)).all(), "rows that are seen sum to 1, others are 0"
    if strategy == "middle":  # the full row, by hand: softmax(q k / (sqrt(d) T)) of the last exchange
        alone = outputs["picture_weights"][0]  # the picture alone has nothing to look at
        assert (alone == 0).all()
        assert outputs["picture_weights"][-1].std() > 1e-4
    if strategy == "attention":
        assert ((outputs["weights"] > 0) == np.array(SUBSETS)).all()


def test_temperature_softens() -> None:
    """The same weights and inputs: a higher temperature spreads what is looked at."""
    spreads = []
    for temperature in (0.1, 1.0, 10.0):
        spec = make_spec("attention", f"num_classes: 5, temperature: {temperature}, export_weights: true")
        graph = build_graph(spec, "fusion")
        feed = make_feed(spec, graph, [[True] * 3] * 4)
        with torch.inference_mode():
            weights = graph.module(*map(torch.from_numpy, feed.values()))[1]
        spreads.append(float(-(weights * weights.log()).sum(-1).mean()))
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("erly", "", ["there is no fusion strategy 'erly'", "early", "where:   three.yaml:"]),
        ("late", "temperature: 0.5", ["the strategy 'late' has no temperature", "early, middle, attention"]),
        ("attention", "temperature: 0", ["fusion.temperature cannot be the number 0", "1e-06 or more"]),
        ("attention", "temperature: -1.5", ["fusion.temperature cannot be the number -1.5", "1e-06 or more"]),
        (
            "late",
            "export_weights: true",
            ["'late' makes no weights that could be exported", "early, middle, attention"],
        ),
        ("early", "num_heads: 3", ["the strategy 'early' needs num_layers"]),
        ("late", "num_layers: 2", ["the strategy 'late' has no num_layers"]),
        ("early", "num_layers: 2, num_heads: 4", ["num_heads 4 does not divide hidden_size 18"]),
        ("middle", "num_layers: 2, num_heads: 3, exchange_layers: [3]", ["exchange_layers", "some of 1 to 2"]),
        ("middle", "num_layers: 2, num_heads: 3, exchange_layers: [2, 1]", ["in rising order", "[2, 1]"]),
        ("late", "options: {gate: 1}", ["the strategy 'late' has no options", "registered strategies"]),
    ],
)
def test_what_contradicts_a_strategy_is_refused(strategy: str, options: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(strategy, options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("kind: text.clip,", "kind: text.smell,", ["unknown kind 'text.smell'", "text.siglip"]),
        (
            "    {kind: sensor.series, num_channels: 3",
            "    {kind: sensor.sries, num_channels: 3",
            ["unknown kind 'sensor.sries'", "sensor.series"],
        ),
        ("[image, text, sensor]", "[image, text, audio]", ["names 'audio', and no component reads it"]),
        ("pooling: none", "num_classes: 4", ["'picture' ends in classes", "fusion.num_classes"]),
        ("hidden_size: 24", "hidden_size: 25", ["num_heads 2 does not divide hidden_size 25"]),
    ],
)
def test_modalities_that_do_not_go_are_refused(old: str, new: str, words: list[str]) -> None:
    text = TEXT.replace("STRATEGY", "late").replace(", OPTIONS", "")
    assert text.count(old) == 1
    from specs.parsing.parse import parse_spec

    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="three.yaml")
    for word in words:
        assert word in str(caught.value)
