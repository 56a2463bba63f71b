"""FuseStep on real decode steps: shipped specs and small checkpoints, the fused graph against the portable one.

ONNX Runtime runs the portable graph and the ordinary typed one, numpy the plugins' nodes (`tests/step_ops.py`). Inputs
are those of the golden data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporters.lower import lower
from exporters.passes import run_pipeline, takes_plugins
from exporters.trace import choose_sizes, trace
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import Spec
from tests.checkpoints.support import build, save
from tests.checkpoints.tiny_decoders import CASES, make_model
from tests.passes_support import differ
from tests.step_ops import run_reference

#: Seen: at most 2.7e-6 over all of these (the ordinary graph: 2.9e-6).
FP32_LIMIT = 8e-6
#: Rounding of the plugin graph may be this many times that of the ordinary one. Seen: 0.9 to 2.1 times.
FP16_FACTOR = 3.0

#: Spec or checkpoint -> layers, and what fuses: attention, of it rotated; products, nodes, with norm, with residual.
FUSED = {
    "text_llm_tiny:tiny": (2, (2, 2, 13, 9, 5, 4)),
    "edge_tiny_agent:tiny": (2, (2, 2, 13, 9, 5, 4)),
    "text_llm_8b:tiny": (2, (2, 2, 13, 9, 5, 4)),
    "multimodal_llm:tiny": (2, (2, 2, 14, 10, 5, 4)),
    "image_captioning:tiny": (2, (2, 2, 13, 9, 5, 4)),  # with biases
    "audio_whisper_tiny:tiny": (2, (2, 0, 17, 15, 0, 6)),  # LayerNorm; keys have no bias
    "Llama": (3, (3, 3, 19, 13, 7, 6)),
    "Llama, biases": (3, (3, 3, 22, 13, 7, 6)),  # gate and up with a bias are two products, not a gated linear
    "Mistral": (3, (3, 3, 19, 13, 7, 6)),
    "Qwen 2": (3, (3, 3, 19, 13, 7, 6)),
    "Qwen 3": (3, (3, 3, 19, 13, 7, 6)),  # norms of q and k stay between
    "Gemma 2": (3, (3, 3, 19, 13, 7, 0)),  # norms before residuals
    "GPT-2": (3, (3, 0, 13, 13, 0, 6)),
    "GPT-NeoX": (3, (3, 0, 13, 13, 0, 6)),  # of a head two thirds are rotated
    "Phi 3": (3, (3, 3, 19, 13, 7, 6)),
}
#: Outside the layers: the embedding, angles, and the last token's row for the head.
OUTSIDE = {"Gather": 1, "Unsqueeze": 3, "Cast": 1, "Mul": 1, "Cos": 1, "Sin": 1, "Squeeze": 1}


@dataclass(frozen=True)
class Step:
    """A decode step's portable graph, inputs for it, and what it makes of them."""

    model: ir.Model
    feed: Mapping[str, np.ndarray]
    wanted: list[np.ndarray]
    largest: Mapping[str, int]


@pytest.fixture(scope="module", params=FUSED)
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Step]:
    return request.param, make_step(request.param, tmp_path_factory.mktemp("step"))


def make_step(name: str, folder: Path) -> Step:
    spec, graphs = _open(name, folder)
    (graph,) = (one for one in graphs if one.name.endswith(".decode"))
    handler = get_handler(spec)
    inputs = handler.make_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=3), seed=0)
    path = folder / "decode.onnx"
    ir.save(lower(trace(graph, spec.dims, inputs), graph), path)
    feed = handler.make_realistic_inputs(spec, graph, sizes=choose_sizes(spec.dims, near=2), seed=1)
    model = ir.load(path)
    largest = {name: dim.max for name, dim in spec.dims.items()}
    return Step(model=model, feed=feed, wanted=run(model, feed), largest=largest)


def _open(name: str, folder: Path) -> tuple[Spec, tuple[GraphModule, ...]]:
    if name in CASES:
        return build(save(make_model(CASES[name]), folder / "checkpoint"))
    spec = load_spec(name)
    return spec, get_handler(spec).build(spec)


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def test_every_model_keeps_its_numbers(step: tuple[str, Step]) -> None:
    name, found = step
    assert takes_plugins(found.model, "tensorrt-8", "fp32", largest=found.largest)
    errors = {}
    for precision in ("fp32", "fp16"):
        lowered = {
            plugins: run_pipeline(
                found.model, lowering="tensorrt-8", precision=precision, plugins=plugins, largest=found.largest
            )
            for plugins in (True, False)
        }
        fused = run_reference(ir.to_proto(lowered[True].model), found.feed)
        errors[precision] = differ(found.wanted, fused), differ(found.wanted, run(lowered[False].model, found.feed))
        (line,) = [line for line in lowered[True].log if line.startswith("FuseStep")]
        attention, rotated, products, nodes, norms, residuals = FUSED[name][1]
        assert line == (
            f"FuseStep: {attention} nodes of attention became plugins, {rotated} with their rotation;"
            f" {products} products became {nodes}, {norms} with their norm, {residuals} with their residual"
        )
        assert not [line for line in lowered[False].log if line.startswith("FuseStep")]
    assert errors["fp32"][0] < FP32_LIMIT, errors
    assert errors["fp16"][0] < FP16_FACTOR * errors["fp16"][1], errors


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_layer_of_a_llama_is_five_nodes(precision: str, tmp_path: Path) -> None:
    """Nothing stands between them: no product, no norm, no view and no Cast."""
    found = make_step("text_llm_tiny:tiny", tmp_path)
    model = run_pipeline(
        found.model, lowering="tensorrt-8", precision=precision, plugins=True, largest=found.largest
    ).model
    casts = 1 if precision == "fp16" else 0  # of the logits
    outside = Counter({**OUTSIDE, "Cast": OUTSIDE["Cast"] + casts})
    assert Counter(node.op_type for node in model.graph) == outside + Counter(
        {"MetagenStepLinear": 4 * 2 + 1, "MetagenStepAttention": 2}
    )
    kinds = [node.op_type.removeprefix("MetagenStep") for node in model.graph if node.domain == "metagen.plugin"]
    assert kinds == ["Linear", "Attention", "Linear", "Linear", "Linear"] * 2 + ["Linear"]  # the head
    places = [index for index, node in enumerate(model.graph) if node.domain == "metagen.plugin"]
    assert places[:10] == list(range(places[0], places[0] + 10))


@pytest.mark.parametrize(("name", "option", "value"), [
    ("Mistral", "window", 0), ("Gemma 2", "softcap", 0.0), ("Gemma 2", "window", 0), ("Llama", "scale", 1.0),
])  # fmt: skip
def test_an_option_of_attention_that_is_lost_is_seen(name: str, option: str, value: float, tmp_path: Path) -> None:
    found = make_step(name, tmp_path)
    fused = run_pipeline(
        found.model, lowering="tensorrt-8", precision="fp32", plugins=True, largest=found.largest
    ).model
    for node in fused.graph:
        if node.op_type == "MetagenStepAttention":
            node.attributes[option] = ir.Attr(option, node.attributes[option].type, value)
    assert differ(found.wanted, run_reference(ir.to_proto(fused), found.feed)) > 100 * FP32_LIMIT
