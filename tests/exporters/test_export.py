"""The whole path of every shipped spec at its tiny size: torch -> portable graph -> typed graphs -> engines."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.runtime import load
from exporters import ops as exported_ops
from metagen_deploy import pipeline
from specs.bundle import Manifest
from specs.bundle.files import read_manifest
from specs.errors import ParityError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.report import ParityReport

SPECS = ("image_vit_base:tiny", "text_llm_tiny:tiny", "multimodal_clip:tiny")
TARGETS = ("cpu", "rtx-4090", "h200@trt8.6")
PRECISIONS = ("fp32", "fp16", "int8")

# The portable graphs' ops, fused as they are meant to be: an op that appears or goes is a change to look at.
PORTABLE_OPS = {
    "image_vit_base:tiny/classifier": {"MetagenAttention": 2, "LayerNormalization": 5, "Conv": 1, "Gemm": 1, "Erf": 2},
    "text_llm_tiny:tiny/decoder.prefill": {"MetagenAttention": 2, "MetagenGatedLinear": 2, "ReduceMean": 5},
    "text_llm_tiny:tiny/decoder.decode": {"MetagenCachedAttention": 2, "MetagenGatedLinear": 2, "ReduceMean": 5},
    "multimodal_clip:tiny/image_encoder": {"MetagenAttention": 2, "LayerNormalization": 6, "Conv": 1, "Erf": 0},
    "multimodal_clip:tiny/text_encoder": {"MetagenAttention": 2, "LayerNormalization": 5, "ArgMax": 1},
    "multimodal_clip:tiny/fusion": {"ReduceL2": 2, "LayerNormalization": 0},
}


@dataclass(frozen=True)
class Exported:
    spec: str
    folder: Path
    manifest: Manifest
    report: ParityReport


def ignore_progress(text: str, fraction: float | None) -> None:
    """Nobody watches a test."""


@pytest.fixture(scope="module", params=SPECS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export") / "x.bundle"
    manifest, report = pipeline.export(
        request.param, output=folder, targets=TARGETS, precisions=PRECISIONS, progress=ignore_progress
    )
    return Exported(request.param, folder, manifest, report)


def test_every_stage_agrees_with_torch(exported: Exported) -> None:
    stages = {row.stage for row in exported.report.rows}
    assert len(stages) == len(exported.manifest.graphs) * (1 + len(TARGETS) * len(PRECISIONS))
    assert exported.report.passed and not exported.report.not_run


def test_portable_graphs_keep_their_custom_ops(exported: Exported) -> None:
    for graph in exported.manifest.graphs:
        model = onnx.load(exported.folder / graph.file, load_external_data=False)
        onnx.checker.check_model(str(exported.folder / graph.file))
        counted = Counter(node.op_type for node in model.graph.node)
        wanted = PORTABLE_OPS[f"{exported.spec}/{graph.name}"]
        assert {op: counted[op] for op in wanted} == wanted
        assert {n.op_type for n in model.graph.node if n.domain == "metagen"} == set(graph.custom_ops)
        properties = [prop for node in model.graph.node for prop in node.metadata_props]
        assert {prop.key for prop in properties} == {"metagen.module"}
        paths = {prop.value for prop in properties}
        assert graph.component == "fusion" or any("layers.1.attention" in path for path in paths), paths


def test_dims_have_the_names_of_the_spec(exported: Exported) -> None:
    for graph in exported.manifest.graphs:
        model = onnx.load(exported.folder / graph.file, load_external_data=False)
        for value, tensor in zip(
            [*model.graph.input, *model.graph.output], [*graph.inputs, *graph.outputs], strict=True
        ):
            shape = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            assert (value.name, shape) == (tensor.name, tensor.shape)


def test_every_weight_is_stored_once(exported: Exported) -> None:
    parameters = Counter[str]()
    for graph in get_handler(load_spec(exported.spec)).build(load_spec(exported.spec)):
        # a patch embedding twice: TensorRT 8.6 multiplies by a matrix where the others convolve
        large = {p.data_ptr(): p.nbytes * (1 + (p.dim() == 4)) for p in graph.module.parameters() if p.nbytes >= 1024}
        parameters[graph.component] = max(parameters[graph.component], sum(large.values()))
    for component, size in parameters.items():
        stored = (exported.folder / component / "weights.float.data").stat().st_size
        assert stored <= size * 1.05 + 4096, "alignment, and constants that an exporter folded"


def test_tensorrt_rtx_compiles_every_typed_graph(exported: Exported) -> None:
    report = pipeline.build(exported.folder, target="rtx-4090", progress=ignore_progress)
    assert len(report.rows) == len(exported.manifest.graphs) * len(PRECISIONS) and not report.not_built
    for row in report.rows:
        assert row.shares is not None
        assert row.shares.compute.get(row.precision, 0) > 0.6, f"{row.file}: {row.shares.compute}"
    again = pipeline.build(exported.folder, target="rtx-4090", progress=ignore_progress)
    assert all(row.reused for row in again.rows)


@pytest.mark.parametrize("edge", [0, 2], ids=["smallest", "largest"])
def test_smallest_and_largest_sizes_agree_with_torch(exported: Exported, edge: int) -> None:
    spec = load_spec(exported.spec)
    handler = get_handler(spec)
    sizes = {name: bounds[edge] for name, bounds in exported.manifest.dims.items()}
    with load(exported.folder, precision="fp32") as session:
        for graph in handler.build(spec):
            inputs = handler.make_inputs(spec, graph, sizes=sizes, seed=7)
            with torch.inference_mode():
                wanted = graph.module(*(torch.from_numpy(inputs[t.name]) for t in graph.inputs))
            got = session.graphs[graph.name].run(inputs)
            for tensor, value in zip(graph.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
                np.testing.assert_allclose(got[tensor.name], value.numpy(), atol=2e-5, rtol=2e-5)


def test_greedy_tokens_equal_torch(exported: Exported) -> None:
    if not exported.spec.startswith("text_llm"):
        pytest.skip("only a language model generates")
    spec = load_spec(exported.spec)
    prefill = get_handler(spec).build(spec)[0].module
    prompts = [[5, 9, 200, 31], [7]]
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):
            with torch.inference_mode():  # the whole sequence again each time: no cache that could be wrong
                logits = prefill(torch.tensor([ids]), torch.tensor([len(ids)]))[0]
            ids.append(int(logits.argmax()))
        wanted.append(ids[len(prompt) :])
    with load(exported.folder, precision="fp32") as session:
        steps = list(session.pipeline.stream_tokens(prompts, max_new_tokens=12))
    assert [list(row) for row in zip(*steps, strict=True)] == wanted


@pytest.mark.parametrize(
    ("op", "mutation"),
    [
        ("MetagenAttention", {"causal": 0}),
        ("MetagenAttention", {"scale": 0.35}),
        ("MetagenGatedLinear", {"activation": "gelu_tanh"}),
    ],
)
def test_a_mutant_never_becomes_a_bundle(
    op: str, mutation: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exported_ops.CUSTOM_OPS[op]

    def build_wrong_body(body: object, inputs: object, attributes: dict[str, object]) -> object:
        return right.build_body(body, inputs, {**attributes, **mutation})  # type: ignore[arg-type]

    wrong = dataclasses.replace(right, build_body=build_wrong_body)  # type: ignore[arg-type]
    monkeypatch.setitem(exported_ops.CUSTOM_OPS, op, wrong)
    with pytest.raises(ParityError, match="is outside tolerance"):
        pipeline.export(
            "text_llm_tiny:tiny",
            output=tmp_path / "x.bundle",
            targets=("cpu",),
            precisions=("fp32",),
            progress=ignore_progress,
        )
    assert list(tmp_path.iterdir()) == []


def test_one_bundle_serves_several_gpu_generations(tmp_path: Path) -> None:
    targets = ("rtx-3090", "rtx-4090", "rtx-5090")
    folder = tmp_path / "x.bundle"
    pipeline.export(
        "image_vit_base:tiny", output=folder, targets=targets, precisions=("fp16",), progress=ignore_progress
    )
    pipeline.build(folder, progress=ignore_progress)
    (graph,) = read_manifest(folder).graphs
    assert [engine.compute_capability for engine in graph.engines] == ["8.6", "8.9", "12.0"]
    assert len({(folder / engine.file).read_bytes() for engine in graph.engines}) == 3
    assert len({(folder / typed.file).read_bytes() for typed in graph.typed}) == 1, "one typed graph serves them all"


def test_the_same_spec_gives_the_same_bundle(tmp_path: Path) -> None:
    manifests = []
    for name in ("a", "b"):
        pipeline.export(
            "image_vit_base:tiny",
            output=tmp_path / name,
            targets=("cpu",),
            precisions=("fp16",),
            progress=ignore_progress,
        )
        manifests.append(read_manifest(tmp_path / name))
    first, second = ({f: e for f, e in m.files.items() if not f.startswith("reports/")} for m in manifests)
    assert first == second
