"""The backends, for real: ONNX Runtime and the TensorRT-RTX compiler, fed with good and bad graphs.

TensorRT itself is not on this machine; what is tested of it is the table that says how each version is driven.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends import BACKENDS, load_backend, probe_backends
from engines.backends.base import CompileRequest, CompileResult, InputProfile
from engines.backends.trt.versions import decide, find_opsets
from specs.errors import BuildError, GraphError, MetagenError, OutputError, PreflightError
from specs.progress import ignore_progress
from tests.engines.bundles import TOKENS, WIDTH, make_model, make_weights

PROFILE = (
    InputProfile(name="tokens", minimum=(1, TOKENS, WIDTH), optimum=(2, TOKENS, WIDTH), maximum=(8, TOKENS, WIDTH)),
)


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    functions: Sequence[onnx.FunctionProto] = (),
    shape: Sequence[int | str] = (2, 8),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions)), path)
    return path


def make_node(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object) -> onnx.NodeProto:
    node = helper.make_node(op, inputs, outputs, name=f"the_{op}", domain=domain, **attributes)
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'encoder', 'encoder.layers.3', 'add']"
    return node


def compile_rtx(
    model: Path,
    output: Path,
    *,
    profile: tuple[InputProfile, ...] = (),
    precision: str = "fp32",
    capabilities: tuple[str, ...] = ("8.9",),
    progress: Callable[[str, float | None], None] = ignore_progress,
) -> CompileResult:
    request = CompileRequest(
        model=model, output=output, precision=precision, profile=profile, compute_capabilities=capabilities
    )
    return load_backend("tensorrt-rtx").compile(request, progress)


def list_children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    onnx.save(make_model(make_weights(), precision="fp16"), path)
    return path


def test_every_backend_says_what_it_can_do_and_what_is_missing() -> None:
    found = {available.backend: available for available in probe_backends()}
    assert tuple(found) == tuple(BACKENDS)
    assert found["onnxruntime"].can_compile and found["onnxruntime"].can_run
    assert found["tensorrt-rtx"].can_compile
    for available in found.values():
        assert (available.can_compile and available.can_run) or (available.reason and available.fix), available


def test_unknown_backend() -> None:
    with pytest.raises(BuildError) as caught:
        load_backend("tensorrt_rtx")
    assert str(caught.value) == (
        "unknown backend 'tensorrt_rtx'\n  allowed: onnxruntime, tensorrt, tensorrt-rtx (did you mean 'tensorrt-rtx'?)"
        "\n  fix:     choose one of these"
    )


def test_rtx_compiles_for_several_gpus_at_once(block: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    output = tmp_path / "block.plan"
    result = compile_rtx(
        block,
        output,
        profile=PROFILE,
        precision="fp16",
        capabilities=("8.9", "12.0"),
        progress=lambda _, fraction: seen.append(fraction or 0.0),
    )
    assert output.stat().st_size == result.bytes > 10_000
    assert result.layers > 50
    assert result.shares is not None and result.shares.compute == {"fp16": 1.0}
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["block.plan"]


def test_rtx_engine_cannot_be_run_here_and_says_so(tmp_path: Path) -> None:
    backend = load_backend("tensorrt-rtx")
    if backend.probe().can_run:
        pytest.skip("this machine has a GPU that TensorRT-RTX runs on")
    with pytest.raises(PreflightError, match="cannot run on this machine"):
        backend.load(tmp_path / "any.plan")


def test_fp32_attention_is_decomposed_and_noted(tmp_path: Path) -> None:
    shape = (1, 4, 16, 16)
    parts = [make_node(op, ["x"], [op]) for op in ("Relu", "Neg", "Abs")]
    nodes = [*parts, make_node("Attention", ["Relu", "Neg", "Abs"], ["y"])]
    model = save_graph(tmp_path / "attention.onnx", nodes, opset=23, shape=shape)
    result = compile_rtx(model, tmp_path / "a.plan")
    assert result.notes[0] == "1 of 1 attention layers are fp32, which has no fused kernel: decomposed"


def test_unsupported_op_names_node_and_module(tmp_path: Path) -> None:
    model = save_graph(tmp_path / "m.onnx", [make_node("FancyOp", ["x"], ["y"], "acme")])
    with pytest.raises(BuildError) as caught:
        compile_rtx(model, tmp_path / "m.plan")
    version = load_backend("tensorrt-rtx").probe().version
    assert str(caught.value) == (
        f"TensorRT-RTX {version} refuses 1 node of this graph: FancyOp\n"
        "  where:   the_FancyOp (FancyOp), module encoder.layers.3\n"
        '  got:     "Plugin not found, are the plugin name, version, and namespace correct?"\n'
        "  fix:     give the op a function body of standard ops (metagen-deploy export does), or rewrite it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_op_inside_a_function_is_named_with_its_caller(tmp_path: Path) -> None:
    body = [
        helper.make_node("Relu", ["a"], ["t"], name="fine"),
        helper.make_node("StringSplit", ["t"], ["b", "c"], name="bad"),
    ]
    function = helper.make_function("acme", "Outer", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    model = save_graph(tmp_path / "m.onnx", [make_node("Outer", ["x"], ["y"], "acme")], functions=[function])
    with pytest.raises(BuildError) as caught:
        compile_rtx(model, tmp_path / "m.plan")
    assert caught.value.where == "bad (StringSplit), in the function of the_Outer (Outer)"


def test_mixed_types_are_refused_with_the_remedy(tmp_path: Path) -> None:
    nodes = [make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), make_node("Mul", ["h", "x"], ["y"])]
    with pytest.raises(BuildError, match="must have same input types") as caught:
        compile_rtx(save_graph(tmp_path / "m.onnx", nodes), tmp_path / "m.plan")
    assert caught.value.fix == "insert a Cast: with strong typing an operator's inputs have one type"


def test_non_zero_zero_point_is_refused_with_the_remedy(tmp_path: Path) -> None:
    nodes = [make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    weights = {"s": np.float32(0.1), "z": np.int8(3)}
    model = save_graph(tmp_path / "m.onnx", nodes, weights={k: np.asarray(v) for k, v in weights.items()})
    with pytest.raises(BuildError) as caught:
        compile_rtx(model, tmp_path / "m.plan")
    assert caught.value.fix == "quantise symmetrically: zero point 0, int8"


def test_unsupported_gpu_names_those_there_are(block: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        compile_rtx(block, tmp_path / "m.plan", capabilities=("8.7",))
    assert "not for 8.7" in str(caught.value) and "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in str(caught.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, this is no graph", b"\x00" * 64, b"\xff" * 64, b"\x08\x0a"], ids=repr
)
def test_not_an_onnx_file(backend: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    request = CompileRequest(model=path, output=tmp_path / "m.plan", precision="fp32", compute_capabilities=("8.9",))
    with pytest.raises(GraphError, match="ONNX file"):
        load_backend(backend).compile(request, ignore_progress)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_opset_of_the_future(backend: str, tmp_path: Path) -> None:
    path = save_graph(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], opset=99)
    request = CompileRequest(model=path, output=tmp_path / "m.plan", precision="fp32", compute_capabilities=("8.9",))
    with pytest.raises(GraphError, match="opset") as caught:
        load_backend(backend).compile(request, ignore_progress)
    assert "99" in (caught.value.got or "")


def test_onnxruntime_translates_its_refusals(tmp_path: Path) -> None:
    wrong = save_graph(
        tmp_path / "m.onnx", [make_node("Add", ["x", "k"], ["y"])], weights={"k": np.ones(5, np.float32)}
    )
    unknown = save_graph(tmp_path / "u.onnx", [make_node("FancyOp", ["x"], ["y"], "acme")])
    for path, kind, words in ((wrong, GraphError, "Incompatible dimensions"), (unknown, BuildError, "acme:FancyOp")):
        request = CompileRequest(model=path, output=None, precision="fp32")
        with pytest.raises(kind) as caught:
            load_backend("onnxruntime").compile(request, ignore_progress)
        assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_compiler_that_crashes_is_an_error(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 dies of an Attention whose query, key and value are one tensor."""
    nodes = [make_node("Attention", ["x", "x", "x"], ["y"])]
    model = save_graph(tmp_path / "m.onnx", nodes, opset=23, shape=(1, 4, 16, 16))
    with pytest.raises(BuildError, match="was killed by signal 11 while compiling") as caught:
        compile_rtx(model, tmp_path / "m.plan")
    assert "Segmentation fault" in (caught.value.got or "")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_killed_compiler_is_an_error_and_leaves_nothing(block: Path, tmp_path: Path) -> None:
    before = list_children()

    def kill(message: str, fraction: float | None) -> None:
        for pid in list_children() - before:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(BuildError, match="was killed by signal 9 while compiling"):
        compile_rtx(block, tmp_path / "m.plan", profile=PROFILE, precision="fp16", progress=kill)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_ends_the_compiler_and_leaves_nothing(block: Path, tmp_path: Path) -> None:
    before = list_children()

    def interrupt(message: str, fraction: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_rtx(block, tmp_path / "m.plan", profile=PROFILE, precision="fp16", progress=interrupt)
    assert list_children() == before
    assert list(tmp_path.iterdir()) == []


def test_unwritable_engine_is_an_output_error_and_leaves_nothing(block: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # the plan has more, the request less
    try:
        with pytest.raises(OutputError) as caught:
            compile_rtx(block, tmp_path / "m.plan", profile=PROFILE, precision="fp16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_says_that_it_is_missing(block: Path, tmp_path: Path) -> None:
    backend = load_backend("tensorrt")
    if backend.probe().version:
        pytest.skip("this machine has TensorRT")
    request = CompileRequest(model=block, output=tmp_path / "m.plan", precision="fp16", compute_capabilities=("9.0",))
    with pytest.raises(MetagenError, match="needs the package 'tensorrt', which is not installed"):
        backend.compile(request, ignore_progress)


#: Names that each version's Python module has, of those the decisions look at (from the modules and their documents).
CONFIG = frozenset({"create_timing_cache", "set_memory_pool_limit"})
VERSIONS: dict[str, tuple[str, dict[str, frozenset[str]]]] = {
    "8.6": (
        "tensorrt",
        {
            "NetworkDefinitionCreationFlag": frozenset({"EXPLICIT_BATCH", "EXPLICIT_PRECISION"}),
            "BuilderFlag": frozenset({"FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE"}),
            "IBuilderConfig": CONFIG,
        },
    ),
    "10.3": (
        "tensorrt",
        {
            "NetworkDefinitionCreationFlag": frozenset({"EXPLICIT_BATCH", "STRONGLY_TYPED"}),
            "BuilderFlag": frozenset({"FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS", "STRIP_PLAN"}),
            "IBuilderConfig": CONFIG | {"progress_monitor"},
        },
    ),
    "11.0": (
        "tensorrt",
        {
            "NetworkDefinitionCreationFlag": frozenset(),
            "BuilderFlag": frozenset({"TF32", "STRIP_PLAN"}),
            "IBuilderConfig": CONFIG | {"progress_monitor"},
        },
    ),
}


@pytest.mark.parametrize(
    ("version", "network", "flags", "typed", "opsets"),
    [
        ("8.6", ("EXPLICIT_BATCH",), ("INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"), False, (7, 17)),
        ("10.3", ("STRONGLY_TYPED",), (), True, (9, 20)),
        ("11.0", (), (), True, (9, 24)),
    ],
)
def test_each_tensorrt_is_driven_its_own_way(
    version: str, network: tuple[str, ...], flags: tuple[str, ...], typed: bool, opsets: tuple[int, int]
) -> None:
    module, names = VERSIONS[version]
    decisions = decide(module, names, "int8")
    assert decisions.network_flags == network
    assert decisions.builder_flags == flags
    assert decisions.strongly_typed == typed
    assert not decisions.ahead_of_time and decisions.timing_cache
    assert find_opsets(module, version) == opsets


def test_a_precision_that_a_version_lacks_is_named() -> None:
    module, names = VERSIONS["8.6"]
    assert decide(module, names, "bf16").missing_flags == ("BF16",)


def test_the_installed_rtx_is_driven_ahead_of_time() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    from engines.backends.tensorrt_rtx import CAPABILITIES
    from engines.backends.trt.versions import read_names

    names = read_names(rtx)
    decisions = decide("tensorrt_rtx", names, "int8")
    assert decisions.strongly_typed and decisions.ahead_of_time and not decisions.timing_cache
    assert decisions.builder_flags == ()
    known = {f"{n[2:-1]}.{n[-1]}" for n in names["ComputeCapability"] if n.startswith("SM")}
    assert known == set(CAPABILITIES)
