"""A user's own modality and strategy: registered like the shipped ones; what goes wrong names the user's line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specs.components import COMPONENTS
from specs.components.encoder import PARAMETER_COUNTERS
from specs.components.fusion.multimodal import STRATEGIES
from specs.composing.extensions import load_extension
from specs.errors import SpecError
from specs.graphs import count_macs, count_parameters, list_graphs
from specs.handlers import get_handler
from specs.models.fusion.encoders import ENCODERS
from specs.models.fusion.multimodal import STRATEGY_MODULES
from specs.parsing.json_schema import make_json_schema
from specs.parsing.parse import parse_spec

GOOD = '''
from typing import ClassVar, Literal
import torch
from metagen_deploy.api import EncoderComponent, EncoderInput, Fused, WeightsTensor, pool_tokens
from metagen_deploy.api import register_encoder, register_strategy

class EchoComponent(EncoderComponent):
    """Echoes of a sonar: time of flight and strength of each."""

    DIMS: ClassVar = {"echoes": (2, 8, 32)}
    kind: Literal["sensor.echo"]
    width: int = 8

    def list_inputs(self):
        return EncoderInput("echoes", ("echoes", 2)), EncoderInput("count", (), "int64", 1, 2, counts="echoes")

    output_tokens = property(lambda self: 1)
    feature_size = property(lambda self: self.width)

@register_encoder(EchoComponent)
class EchoEncoder(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = torch.nn.Linear(2, config.width)

    def forward(self, echoes, count):
        valid = torch.arange(echoes.shape[1]) < count[:, None]
        seen = torch.where(valid[:, :, None], self.up(torch.where(valid[:, :, None], echoes, 0.0)), -1e4)
        return seen.amax(dim=1, keepdim=True)

def list_weights(config, streams):
    return (WeightsTensor("norms", (len(streams),), (), tuple((one.name, 1) for one in streams)),)

@register_strategy("loudest", list_weights=list_weights)
class LoudestFusion(torch.nn.Module):
    """The modality whose mean is longest."""

    def __init__(self, config, streams):
        super().__init__()
        self.config = config

    def forward(self, seen):
        pooled = torch.stack([pool_tokens(one) for one in seen], dim=1)
        norms = pooled.norm(dim=-1)
        share = (norms * float(self.config.options.get("sharpness", 4.0))).softmax(-1)
        share = share * torch.stack([one.presence for one in seen], dim=1).to(share.dtype)
        return Fused((pooled * share[:, :, None]).sum(1), (share,) if self.config.export_weights else ())
'''
YAML = """
name: echo
modality: {inputs: [image, sensor], outputs: [label]}
objective: classification
components:
  picture: {kind: vision.vit, image_size: 16, patch_size: 8, hidden_size: 24, num_layers: 1, num_heads: 2}
  echo: {kind: sensor.echo, width: 6}
  fusion: {kind: fusion.multimodal, strategy: loudest, hidden_size: 8, num_classes: 3, export_weights: true}
"""


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table)) for table in (COMPONENTS, STRATEGIES, ENCODERS, STRATEGY_MODULES, PARAMETER_COUNTERS)
    ]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def write(folder: Path, text: str) -> Path:
    path = folder / "echo.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_registered_kind_and_strategy_are_like_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(YAML, source="echo.yaml")
    assert "unknown kind 'sensor.echo'" in str(caught.value)
    load_extension(write(tmp_path, GOOD))
    spec = parse_spec(YAML, source="echo.yaml")
    assert spec.dims["echoes"].max == 32
    assert [graph.name for graph in list_graphs(spec)] == ["picture", "echo", "fusion"]
    counts = count_parameters(spec)
    assert counts["echo"] == 2 * 6 + 6
    assert all(count_macs(spec).values())
    built = {graph.name: graph for graph in get_handler(spec).build(spec)}
    assert {name: sum(p.numel() for p in graph.module.parameters()) for name, graph in built.items()} == counts
    assert "EchoComponent" in make_json_schema()["$defs"]
    feed = get_handler(spec).make_inputs(spec, built["echo"], sizes={"batch": 4, "echoes": 9}, seed=0)
    assert feed["count"].max() == 9 and len(set(feed["count"].tolist())) > 1, "counts fit what there is"
    inputs = [torch.from_numpy(feed[name]) for name in ("echoes", "count")]
    tokens = built["echo"].module(*inputs)
    padded = np.pad(feed["echoes"], ((0, 0), (0, 5), (0, 0)), constant_values=np.nan)
    assert torch.equal(tokens, built["echo"].module(torch.from_numpy(padded), inputs[1]))


def test_loading_twice_is_harmless(tmp_path: Path) -> None:
    load_extension(write(tmp_path, GOOD))
    load_extension(write(tmp_path, GOOD + "\n# edited\n"))
    assert parse_spec(YAML, source="echo.yaml").components["echo"].kind == "sensor.echo"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", ["the extension registers nothing", "register_encoder"]),
        ("x = 1\n\nx / 0\n", ["the extension could not be loaded", "echo.py:3", "ZeroDivisionError"]),
        ("def f(:\n", ["the extension could not be loaded", "echo.py:1", "SyntaxError"]),
        (GOOD.replace('"sensor.echo"', '"sensor.points"'), ["the kind 'sensor.points' is taken", "PointsComponent"]),
        (GOOD.replace('Literal["sensor.echo"]', "str"), ["EchoComponent does not say which kind it is"]),
        (GOOD.replace('"loudest"', '"early"'), ["the strategy 'early' is a shipped one"]),
        (GOOD.replace("(EncoderComponent)", ""), ["this is no encoder's component", "EncoderComponent"]),
    ],
)
def test_an_extension_that_cannot_be_is_refused(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_extension(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("missing.py", "folder", "echo.txt"):
        with pytest.raises(SpecError) as caught:
            load_extension(tmp_path / name)
        assert "there is no such extension" in str(caught.value)


def test_a_strategy_without_weights_cannot_export_them(tmp_path: Path) -> None:
    load_extension(write(tmp_path, GOOD.replace(", list_weights=list_weights", "")))
    with pytest.raises(SpecError) as caught:
        parse_spec(YAML, source="echo.yaml")
    assert "the strategy 'loudest' makes no weights that could be exported" in str(caught.value)
