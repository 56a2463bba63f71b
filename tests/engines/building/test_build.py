"""Building bundles for real: ONNX Runtime and TensorRT-RTX, reuse by key, refusals, and nothing half-written."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.backends import load_backend
from engines.backends.base import Availability, CompileRequest, CompileResult, InputProfile
from engines.building.bundle import NOTHING_TO_QUANTISE, build_bundle
from engines.building.keys import KeyInputs, make_key, name_timing_cache
from engines.building.profiles import describe_profiles, list_dynamic_dims, make_profiles, split_profile
from engines.building.records import REPORT_NAME, read_build_report
from engines.onnx_files.records import Value
from specs.bundle import IoTensor, Manifest
from specs.bundle.files import index_files, read_manifest, verify_files, write_manifest
from specs.errors import BuildError, BundleError
from specs.report import PrecisionShares
from specs.targets import load_target
from tests.engines.bundles import TOKENS, WIDTH, make_model, measure_magnitudes, write_bundle

PLAN = "block/model.rtx-4090-fp16.tensorrt-rtx.plan"


def test_every_typed_graph_is_compiled_and_recorded(bundle: Path) -> None:
    report = build_bundle(bundle)
    assert [(r.target, r.backend, r.precision, r.reused) for r in report.rows] == [
        ("cpu", "onnxruntime", "fp32", False),
        ("rtx-4090", "tensorrt-rtx", "fp16", False),
    ]
    cpu, rtx = report.rows
    assert cpu.file == "block/model.cpu-fp32.onnx"
    assert rtx.file == PLAN and rtx.bytes == (bundle / PLAN).stat().st_size
    assert rtx.shares is not None and rtx.shares.compute == {"fp16": 1.0}
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert set(manifest.files) == set(index_files(bundle))
    (engine,) = manifest.graphs[0].engines
    assert (engine.file, engine.compute_capability, engine.gpu) == (PLAN, "8.9", "")
    assert read_build_report(bundle) == report.rows


def test_an_engine_is_reused_until_something_changes(bundle: Path, weights: dict[str, np.ndarray]) -> None:
    first = build_bundle(bundle, target="rtx-4090").rows[0]
    again = build_bundle(bundle, target="rtx-4090").rows[0]
    assert not first.reused and again == replace(first, reused=True)
    manifest = read_manifest(bundle)
    write_manifest(bundle, replace(manifest, dims={"batch": (1, 4, 8)}))
    assert not build_bundle(bundle, target="rtx-4090").rows[0].reused
    (bundle / PLAN).write_bytes(b"damaged")
    assert not build_bundle(bundle, target="rtx-4090").rows[0].reused
    verify_files(bundle, read_manifest(bundle))


PROFILE = InputProfile(name="x", minimum=(1, 4), optimum=(2, 4), maximum=(8, 4))
KEY = KeyInputs(
    model_sha256="a",
    external_sha256={"w.data": "b"},
    profile=(PROFILE,),
    wide_profile=(),
    precision="fp16",
    keep_fp32=("node",),
    plugins={"Op": "d"},
    backend="tensorrt",
    backend_version="10.3.0",
    compute_capabilities=("9.0",),
    gpu="H200",
    workspace_bytes=1 << 30,
    optimization_level=3,
)
CHANGED: dict[str, object] = {
    "model_sha256": "c",
    "external_sha256": {"w.data": "c"},
    "profile": (replace(PROFILE, optimum=(4, 4)),),
    "wide_profile": (PROFILE,),
    "precision": "int8",
    "keep_fp32": (),
    "plugins": {},
    "backend": "tensorrt-rtx",
    "backend_version": "10.3.1",
    "compute_capabilities": ("9.0", "8.9"),
    "gpu": "H100",
    "workspace_bytes": 1 << 31,
    "optimization_level": None,
}


def test_the_key_digests_every_input() -> None:
    assert set(CHANGED) == {field.name for field in fields(KeyInputs)}
    keys = {make_key(replace(KEY, **{name: value})) for name, value in CHANGED.items()}  # type: ignore[arg-type]
    assert len(keys | {make_key(KEY)}) == len(CHANGED) + 1
    assert make_key(replace(KEY)) == make_key(KEY)


def test_a_timing_cache_is_named_by_compiler_version_and_gpu(tmp_path: Path) -> None:
    path = name_timing_cache(tmp_path, backend="tensorrt", version="10.3.0", compute_capability="8.7")
    assert path == tmp_path / "tensorrt-10.3.0-sm87.cache"


def test_a_timing_cache_that_cannot_be_used_is_said(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "t.cache"
    row = build_bundle(bundle, target="rtx-4090", timing_cache=cache).rows[0]
    assert f"tensorrt-rtx has no timing cache: {cache} is neither read nor written" in row.notes
    assert not cache.exists()


def test_a_precision_that_the_graph_does_not_have(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", {("rtx-4090", "fp16"): make_model(weights, precision="fp32")})
    with pytest.raises(BuildError, match="fp16 was asked for, and the graph does not compute in it"):
        build_bundle(tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.plan"))


def test_the_precision_is_judged_before_and_after_compiling(
    bundle: Path, weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load_backend("tensorrt-rtx")
    result = CompileResult(
        backend_version="1", seconds=0.0, bytes=1, gpu="",
        shares=PrecisionShares(nodes={}, weight_bytes={}, compute={"fp32": 1.0}),
    )  # fmt: skip
    compiled: list[CompileRequest] = []

    def compile_in_fp32(request: CompileRequest, progress: object) -> CompileResult:
        compiled.append(request)
        return result

    monkeypatch.setattr(backend, "compile", compile_in_fp32)
    with pytest.raises(BuildError, match="fp16 was asked for") as caught:
        build_bundle(bundle, target="rtx-4090")
    assert caught.value.where == "the engine of block/model.rtx-4090-fp16.onnx" and len(compiled) == 1
    assert compiled[0].workspace_bytes is not None
    assert compiled[0].workspace_bytes <= load_target("rtx-4090").memory_bytes // 2
    write_bundle(tmp_path / "wrong", {("rtx-4090", "fp16"): make_model(weights)})
    with pytest.raises(BuildError, match="fp16 was asked for"):
        build_bundle(tmp_path / "wrong")
    assert len(compiled) == 1, "a graph of another precision is not even compiled"


def test_everything_that_decides_an_engine_reaches_its_key(
    weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose compiler tunes for the GPU it runs on."""
    folder, file = tmp_path / "b", "block/model.l4-fp16.onnx"
    manifest = write_bundle(folder, {("l4", "fp16"): make_model(weights, precision="fp16")})
    (graph,) = manifest.graphs
    typed = replace(graph.typed[0], keep_fp32=("0.mixed: its range",))
    write_manifest(folder, replace(manifest, graphs=(replace(graph, typed=(typed,)),)))
    backend = load_backend("tensorrt")
    here = Availability(
        backend="tensorrt", version="10.13", can_compile=True, can_run=True, device="NVIDIA L4 (SM 8.9)"
    )
    keys: list[KeyInputs] = []

    def refuse(request: CompileRequest, progress: object) -> CompileResult:
        raise BuildError("not compiled")

    monkeypatch.setattr(backend, "probe", lambda: here)
    monkeypatch.setattr(backend, "describe_capability", lambda capability: "")
    monkeypatch.setattr(backend, "compile", refuse)
    monkeypatch.setattr("engines.building.bundle.make_key", lambda inputs: keys.append(inputs) or "key")
    with pytest.raises(BuildError, match="not compiled"):
        build_bundle(folder, target="l4")
    target = load_target("l4")
    assert keys == [
        KeyInputs(
            model_sha256=manifest.files[file].sha256,
            external_sha256={"model.l4-fp16.data": manifest.files["block/model.l4-fp16.data"].sha256},
            profile=(
                InputProfile(
                    name="tokens", minimum=(1, TOKENS, WIDTH), optimum=(2, TOKENS, WIDTH), maximum=(8, TOKENS, WIDTH)
                ),
            ),
            wide_profile=(),
            precision="fp16",
            keep_fp32=("0.mixed",),
            plugins={},
            backend="tensorrt",
            backend_version="10.13",
            compute_capabilities=("8.9",),
            gpu="NVIDIA L4 (SM 8.9)",
            workspace_bytes=(target.memory_bytes - target.reserved_bytes) // 2,
            optimization_level=None,
        )
    ]


def test_int8_is_what_the_compiler_sees(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).standard_normal((4, TOKENS, WIDTH)).astype(np.float32)
    model = make_model(weights, precision="int8", ranges=measure_magnitudes(weights, tokens))
    write_bundle(tmp_path / "b", {("rtx-4090", "int8"): model})
    row = build_bundle(tmp_path / "b").rows[0]
    assert row.shares is not None and row.shares.compute["int8"] > 0.9 and row.shares.weight_bytes["int8"] > 0.8


WITHOUT_WEIGHTS = f"""<ir_version: 10, opset_import: ["": 19]>
g (float[batch, {TOKENS}, {WIDTH}] tokens) => (float[batch, {TOKENS}, {WIDTH}] features) {{
    h = Constant <value = float {{0.5}}> () half = Cast <to: int = 10> (h)
    x = Cast <to: int = 10> (tokens) y = Mul (x, half) t = Transpose <perm = [0, 2, 1]> (y)
    s = MatMul (x, t) p = Softmax <axis: int = -1> (s) m = MatMul (p, x) features = Cast <to: int = 1> (m)
}}"""


def test_a_graph_without_weights_has_nothing_to_quantise(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    bare = onnx.parser.parse_model(WITHOUT_WEIGHTS)
    write_bundle(tmp_path / "b", {("rtx-4090", "int8"): bare})
    (row,) = build_bundle(tmp_path / "b").rows
    assert NOTHING_TO_QUANTISE in row.notes
    assert row.shares is not None and row.shares.compute == {"fp16": 1.0}
    write_bundle(tmp_path / "c", {("rtx-4090", "int8"): make_model(weights, precision="fp16")})
    with pytest.raises(BuildError, match="int8 was asked for, and the graph does not compute in it"):
        build_bundle(tmp_path / "c")


def test_a_graph_for_another_machine_is_listed_with_the_reason(weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    jetson = "jetson-agx-orin-64gb"
    half = make_model(weights, precision="fp16")
    write_bundle(tmp_path / "b", {("cpu", "fp32"): make_model(weights), (jetson, "fp16"): half})
    report = build_bundle(tmp_path / "b")
    assert [row.target for row in report.rows] == ["cpu"]
    assert list(report.not_built) == [f"block/model.{jetson}-fp16.onnx"]
    assert "1 not built here" in report.summarise()
    with pytest.raises(BuildError, match="nothing of this bundle can be compiled on this machine"):
        build_bundle(tmp_path / "b", target=jetson)


def test_unknown_target_and_wrong_backend(bundle: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_bundle(bundle, target="rtx-4080")
    assert str(caught.value) == (
        "this bundle has no graph for the target 'rtx-4080'\n"
        "  allowed: cpu, rtx-4090 (did you mean 'rtx-4090'?)\n"
        "  fix:     use one of these"
    )
    with pytest.raises(BuildError, match="fix:     export it for that target too: --target h200"):
        build_bundle(bundle, target="h200")
    with pytest.raises(BuildError, match="target 'cpu' is served by onnxruntime, not by tensorrt-rtx"):
        build_bundle(bundle, target="cpu", backend="tensorrt-rtx")


def test_a_changed_byte_is_found_before_compiling(bundle: Path) -> None:
    path = bundle / "block/model.rtx-4090-fp16.data"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="a file of the bundle was changed"):
        build_bundle(bundle)
    assert not list(bundle.rglob("*.plan"))


def test_an_interrupted_build_keeps_what_was_finished(bundle: Path) -> None:
    def interrupt(message: str, fraction: float | None) -> None:
        if "rtx-4090" in message and "building" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(bundle, progress=interrupt)
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    assert set(manifest.files) == set(index_files(bundle))
    assert [row.target for row in read_build_report(bundle)] == ["cpu"]
    assert not list(bundle.rglob("*.plan")) and not list(bundle.rglob("*.tmp"))


def test_a_damaged_build_report_is_started_anew(bundle: Path) -> None:
    (bundle / "reports").mkdir()
    (bundle / REPORT_NAME).write_text('{"rows": [{"nonsense": 1}]}')
    assert read_build_report(bundle) == ()
    assert build_bundle(bundle, target="cpu").rows


def test_profiles_follow_the_dims() -> None:
    inputs = (
        IoTensor(name="ids", dtype="int64", shape=("batch", "tokens")),
        IoTensor(name="table", dtype="float32", shape=(4, 8)),
        IoTensor(name="cache", dtype="float32", shape=("batch", 2, "cache", 16)),
    )
    dims = {"batch": (1, 1, 4), "tokens": (1, 64, 512), "cache": (16, 128, 2048)}
    assert make_profiles(inputs, dims, where="g") == (
        InputProfile(name="ids", minimum=(1, 1), optimum=(1, 64), maximum=(4, 512)),
        InputProfile(name="cache", minimum=(1, 2, 16, 16), optimum=(1, 2, 128, 16), maximum=(4, 2, 2048, 16)),
    )


def test_far_sizes_get_a_profile_of_their_own() -> None:
    ids = InputProfile(name="ids", minimum=(1, 1), optimum=(1, 64), maximum=(4, 512))
    lengths = InputProfile(name="lengths", minimum=(1,), optimum=(1,), maximum=(4,))
    near, wide = split_profile((ids, lengths))
    assert near == (replace(ids, maximum=(1, 64)), replace(lengths, maximum=(1,)))
    assert wide == (replace(ids, optimum=(4, 512)), replace(lengths, optimum=(4,)))
    assert describe_profiles(near, wide) == (
        "two profiles: tuned for 'ids' of [1, 64], and for larger ones at [4, 512]",
    )


@pytest.mark.parametrize("profile", [(), (PROFILE,)])
def test_near_sizes_share_a_profile(profile: tuple[InputProfile, ...]) -> None:
    assert split_profile(profile) == (profile, ()) and describe_profiles(profile, ()) == ()


def test_a_dim_without_a_range_is_asked_for() -> None:
    unnamed = Value(name="x", dtype="float32", shape=(None, 3))
    assert list_dynamic_dims([unnamed]) == ("x.0",)
    with pytest.raises(BuildError) as caught:
        make_profiles([unnamed], {"batch": (1, 2, 4)}, where="m.onnx")
    assert str(caught.value) == (
        "the graph has a dynamic dimension without a range: 'x.0'\n"
        "  where:   m.onnx: input 'x', axis 0\n"
        "  allowed: ranges were given for: batch\n"
        "  fix:     give its smallest, usual and largest size: --dim x.0=1,8,32"
    )
    with pytest.raises(BuildError, match="not 1 <= min <= opt <= max"):
        make_profiles([unnamed], {"x.0": (4, 2, 8)}, where="m.onnx")
    with pytest.raises(BuildError, match="does not say how many dimensions"):
        make_profiles([Value(name="x", dtype="float32", shape=None)], {}, where="m.onnx")


def test_a_precision_that_is_no_faster_is_put_last(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is said to run what it builds; the times are given."""

    def rank(folder: Path, manifest: Manifest, files: list[str]) -> tuple[Manifest, dict[str, str]]:
        seen.append(files)
        return replace(manifest, name="ranked"), dict.fromkeys(files, "slower")

    seen: list[list[str]] = []
    monkeypatch.setattr("engines.building.bundle.rank_engines", rank)
    report = build_bundle(bundle)
    cpu, rtx = report.rows
    assert seen == [[cpu.file]]  # this machine cannot run the other
    assert cpu.notes[-1] == "slower" and "slower" not in rtx.notes
    assert read_manifest(bundle).name == "ranked" and read_build_report(bundle) == report.rows
    verify_files(bundle, read_manifest(bundle))
