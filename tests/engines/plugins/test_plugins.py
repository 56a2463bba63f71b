"""Plugin libraries: found, asked what they are, chosen for a build, kept in the bundle, registered; and compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import plugins
from engines.backends import load_backend, tensorrt
from engines.backends.base import Availability, CompileRequest, CompileResult
from engines.building.bundle import build_bundle
from exporters.typed_graphs import Variant, write_typed_graphs
from exporters.weights import WeightPool
from metagen_deploy.terminal.inspection import print_inspection
from specs.bundle import Manifest
from specs.bundle.files import digest_file, index_files, read_manifest, write_manifest
from specs.errors import BuildError, MetagenError, PreflightError
from specs.targets import load_target

OP = "MetagenGridSample3D"
Compiled = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Makes libraries that say what they are, as the real one does, and run nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is on this machine")

    def compile_one(name: str, *, tensorrt: int = 8, op: str = OP) -> Path:
        folder = tmp_path_factory.mktemp("library")
        said = f'{{\\"tensorrt\\": {tensorrt}, \\"ops\\": [\\"{op}\\"]}}'
        (folder / "l.c").write_text(f'char const* metagenPlugins(void) {{ return "{said}"; }}\n')
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, folder / "l.c"], check=True)
        (folder / "l.c").unlink()
        return folder / name

    return compile_one


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One graph that samples, typed for an H200 with TensorRT 8.6 and for a GeForce, as an export writes it."""
    import onnx_ir as ir

    from specs.bundle import Graph, IoTensor
    from tests.passes_support import parse

    folder = tmp_path / "b.bundle"
    (folder / "part").mkdir(parents=True)
    model = parse("""<ir_version: 10, opset_import: ["": 18, "metagen": 1]>
        g (float[2,4,3,4,5] x, float[2,2,3,4,3] grid) => (float[2,4,2,3,4] y) {
            y = metagen.MetagenGridSample3D
                <mode: string = "bilinear", padding_mode: string = "zeros", align_corners: int = 0> (x, grid)
        }""")
    ir.save(model, folder / "part/model.onnx")
    typed = write_typed_graphs(
        folder / "part/model.onnx",
        [Variant(target=load_target(name), precision="fp32") for name in ("h200@trt8.6", "rtx-4090", "cpu")],
        WeightPool(folder / "part"),
        calibrate=lambda tensors: {},
        decided={},
        progress=lambda text, fraction: None,
    )
    np.savez(folder / "part/model.golden.npz")
    graph = Graph(
        name="model",
        component="part",
        file="part/model.onnx",
        golden="part/model.golden.npz",
        inputs=(
            IoTensor(name="x", dtype="float32", shape=(2, 4, 3, 4, 5)),
            IoTensor(name="grid", dtype="float32", shape=(2, 2, 3, 4, 3)),
        ),
        outputs=(IoTensor(name="y", dtype="float32", shape=(2, 4, 2, 3, 4)),),
        typed=typed,
    )
    write_manifest(
        folder,
        Manifest(
            name="b",
            spec_digest="",
            created_by={},
            dims={},
            pipeline={"kind": "tensors", "graph": "model"},
            graphs=(graph,),
            files=index_files(folder),
        ),
    )
    return folder


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[CompileRequest]:
    """A machine whose TensorRT 8.6 compiles whatever it is given; what it was asked."""
    asked: list[CompileRequest] = []

    def compile_request(request: CompileRequest, progress: object) -> CompileResult:
        assert request.output is not None
        asked.append(request)
        request.output.write_bytes(request.model.read_bytes())
        return CompileResult(backend_version="8.6.0", seconds=1, bytes=1)

    backend = load_backend("tensorrt")
    here = Availability(backend="tensorrt", version="8.6.0", can_compile=True, can_run=True, device="H200 (SM 9.0)")
    monkeypatch.setattr(backend, "probe", lambda: here)
    monkeypatch.setattr(backend, "describe_capability", lambda capability: "")
    monkeypatch.setattr(backend, "compile", compile_request)
    return asked


def test_an_export_writes_both_graphs_for_tensorrt(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert [typed.plugin_file for typed in manifest.graph("model").typed] == [
        "part/model.h200@trt8.6-fp32.plugin.onnx",
        "part/model.rtx-4090-fp32.plugin.onnx",
        None,
    ]
    assert {f for f in manifest.files if f.endswith(".plugin.onnx")} == {
        "part/model.h200@trt8.6-fp32.plugin.onnx",
        "part/model.rtx-4090-fp32.plugin.onnx",
    }


def test_without_a_library_the_body_is_built_and_that_is_said(bundle: Path, requests: list[CompileRequest]) -> None:
    (row,) = build_bundle(bundle, target="h200@trt8.6").rows
    assert requests[0].model.name == "model.h200@trt8.6-fp32.onnx" and requests[0].plugins == ()
    assert f"{OP}: the body in standard operators, no plugin (name a library in METAGEN_PLUGINS)" in row.notes
    assert read_manifest(bundle).graph("model").engines[0].plugins == {}


def test_with_a_library_the_node_is_built_and_the_library_kept(
    bundle: Path, requests: list[CompileRequest], compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    body_key = build_bundle(bundle, target="h200@trt8.6") and read_manifest(bundle).graph("model").engines[0].key
    library = compile_library("libp.so")
    monkeypatch.setenv(plugins.VARIABLE, str(library.parent))
    (row,) = build_bundle(bundle, target="h200@trt8.6").rows
    sha256 = digest_file(library)
    assert requests[1].model.name == "model.h200@trt8.6-fp32.plugin.onnx" and requests[1].plugins == (library,)
    assert f"{OP}: the plugin of libp.so, sha256 {sha256[:16]}…" in row.notes
    manifest = read_manifest(bundle)
    (engine,) = manifest.graph("model").engines
    assert engine.plugins == {OP: sha256} and engine.key != body_key
    kept = f"plugins/libp.{sha256[:12]}.so"
    assert manifest.files[kept].sha256 == sha256 == digest_file(bundle / kept)
    assert plugins.locate_files(manifest, engine) == (kept,)

    monkeypatch.delenv(plugins.VARIABLE)
    (again,) = build_bundle(bundle, target="h200@trt8.6").rows
    assert again.reused, "the bundle's own library counts where none is named"
    monkeypatch.setenv(plugins.VARIABLE, "")
    build_bundle(bundle, target="h200@trt8.6")
    assert requests[2].plugins == (), "set to nothing: the body, whatever the bundle holds"


def test_inspect_registers_the_libraries_before_it_reads_the_engine(
    bundle: Path, requests: list[CompileRequest], compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library("libp.so")
    monkeypatch.setenv(plugins.VARIABLE, str(library))
    (row,) = build_bundle(bundle, target="h200@trt8.6").rows
    done: list[object] = []
    monkeypatch.setattr(tensorrt, "load_libraries", lambda trt, paths: done.append([path.name for path in paths]))
    monkeypatch.setattr(tensorrt, "_read_engine", lambda path: done.append(path.name) or {"layers": 3})
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())  # type: ignore[arg-type]
    print_inspection(bundle / row.file)
    kept = f"libp.{digest_file(library)[:12]}.so"
    assert done == [[kept], Path(row.file).name]
    (bundle / "plugins" / kept).write_bytes(b"changed")
    print_inspection(bundle / row.file)  # what was recorded is still shown
    assert len(done) == 2


def test_another_library_is_another_engine(
    bundle: Path, requests: list[CompileRequest], compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()
    for name in ("liba.so", "libb.so"):
        library = compile_library(name)
        library.write_bytes(library.read_bytes() + name.encode())  # the same code, other bytes
        monkeypatch.setenv(plugins.VARIABLE, str(library))
        assert not build_bundle(bundle, target="h200@trt8.6").rows[0].reused
        keys.add(read_manifest(bundle).graph("model").engines[0].key)
    assert len(keys) == 2


def test_tensorrt_rtx_takes_no_plugins(
    bundle: Path, compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv(plugins.VARIABLE, str(compile_library("libp.so")))
    (row,) = build_bundle(bundle, target="rtx-4090").rows
    assert f"{OP}: the body in standard operators, no plugin (tensorrt-rtx takes none)" in row.notes


def _explain(error: MetagenError) -> str:
    return str(error).replace(plugins.BUILD_COMMAND, "BUILD")


WITHOUT = "build with the op's body instead: METAGEN_PLUGINS= metagen-deploy build BUNDLE"


def test_a_library_that_does_not_serve_is_refused(
    bundle: Path, requests: list[CompileRequest], compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library("libp.so", tensorrt=10)
    monkeypatch.setenv(plugins.VARIABLE, str(library))
    with pytest.raises(BuildError) as caught:
        build_bundle(bundle, target="h200@trt8.6")
    assert _explain(caught.value) == (
        f"no plugin library runs {OP} with TensorRT 8.6.0\n"
        f"  where:   {library.parent}\n"
        f"  got:     libp.so (TensorRT 10: {OP})\n"
        "  allowed: a library compiled with the headers of TensorRT 8\n"
        f"  fix:     build it: BUILD; or {WITHOUT}"
    )
    monkeypatch.setenv(plugins.VARIABLE, str(compile_library("libq.so", op="Another")))
    with pytest.raises(BuildError, match=f"no plugin library runs {OP}"):
        build_bundle(bundle, target="h200@trt8.6")
    assert not requests


def test_what_is_no_library_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(BuildError) as caught:
        plugins.find_libraries(bundle)
    assert _explain(caught.value) == (
        "METAGEN_PLUGINS names nothing that exists\n"
        "  where:   METAGEN_PLUGINS\n"
        f"  got:     {tmp_path / 'none.so'}\n"
        "  allowed: a plugin library, or a folder of them\n"
        f"  fix:     build the library: BUILD; or {WITHOUT}"
    )
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "text.so"))
    with pytest.raises(BuildError, match="this is no plugin library of metagen-deploy for this machine") as caught:
        plugins.find_libraries(bundle)
    assert caught.value.allowed == "a shared library that exports metagenPlugins"


def test_an_engine_without_its_library_names_op_library_and_ways_out(
    bundle: Path, requests: list[CompileRequest], compile_library: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library("libp.so")
    monkeypatch.setenv(plugins.VARIABLE, str(library))
    build_bundle(bundle, target="h200@trt8.6")
    manifest = read_manifest(bundle)
    (engine,) = manifest.graph("model").engines
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith("plugins/")}
    with pytest.raises(PreflightError) as caught:
        plugins.locate_files(replace(manifest, files=files), engine)
    assert _explain(caught.value) == (
        f"the bundle does not hold the plugin library of {OP} (sha256 {digest_file(library)[:16]}…) that the engine was"
        " built with\n"
        "  where:   part/model.h200@trt8.6-fp32.tensorrt.plan\n"
        "  fix:     build the library and then the engine: BUILD, METAGEN_PLUGINS=LIBRARY metagen-deploy build BUNDLE;"
        f" or {WITHOUT}"
    )


def test_a_library_is_registered_once(compile_library: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_loaded", set())
    loaded: list[str] = []
    answer: list[object] = [object()]
    registry = SimpleNamespace(load_library=lambda path: loaded.append(path) or answer[0])
    trt = SimpleNamespace(__version__="8.6.0", get_plugin_registry=lambda: registry)
    first, second = compile_library("liba.so"), compile_library("libb.so", tensorrt=11)
    plugins.load_libraries(trt, [first, first])
    plugins.load_libraries(trt, [first])
    assert loaded == [str(first)]
    answer[0] = None
    with pytest.raises(PreflightError) as caught:
        plugins.load_libraries(trt, [second])
    assert _explain(caught.value) == (
        f"TensorRT 8.6.0 does not load the plugin library of {OP}\n"
        f"  where:   {second}\n"
        "  got:     compiled with the headers of TensorRT 11\n"
        f"  fix:     build it for this version: BUILD; or {WITHOUT}"
    )


_HEADERS = [path for path in os.environ.get("METAGEN_TENSORRT_HEADERS", "").split(os.pathsep) if path]


@pytest.mark.parametrize("headers", _HEADERS or [None])
def test_the_library_compiles(headers: str | None, tmp_path: Path) -> None:
    """With every TensorRT whose include folder `METAGEN_TENSORRT_HEADERS` lists; the face follows the headers."""
    if headers is None:
        pytest.skip("METAGEN_TENSORRT_HEADERS lists no include folder of TensorRT")
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine")
    source = Path(plugins.__file__).parent / "cpp"
    options = [f"-DTENSORRT_INCLUDE_DIR={headers}", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    subprocess.run(["cmake", "-S", source, "-B", tmp_path, *options], check=True, capture_output=True)
    done = subprocess.run(["cmake", "--build", tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    library = plugins.read_library(tmp_path / "libmetagen_plugins.so")
    version = (Path(headers) / "NvInferVersion.h").read_text()
    ops = ("MetagenGridSample3D", "MetagenStepAttention", "MetagenStepLinear")
    assert library.ops == ops and str(library.tensorrt) in version
    entry = "getPluginCreators" if library.tensorrt < 10 else "getCreators"
    assert entry.encode() in library.path.read_bytes()


def test_the_build_refuses_a_folder_without_headers(tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        pytest.skip("cmake or nvcc is not on this machine")
    source = Path(plugins.__file__).parent / "cpp"
    done = subprocess.run(["cmake", "-S", source, "-B", tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode != 0 and "TENSORRT_INCLUDE_DIR has no NvInferRuntime.h: ''" in done.stderr
