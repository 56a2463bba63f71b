"""What a session chooses to run a graph, what it passes over, and the words for both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.plugins import BUILD_COMMAND, WITHOUT
from engines.runtime import Session, load
from engines.runtime.preflight import Machine, list_candidates, verify_candidate
from specs.bundle import TypedGraph
from specs.bundle.files import digest_file, read_manifest
from specs.errors import BundleError, InputError, PreflightError
from tests.engines.runtime.machines import H200, add_engine, add_typed, make_machine
from tests.small_bundles import (
    SIDE,
    change_manifest,
    make_classifier,
)


def get_bias(session: Session) -> float:
    return float(session.run({"image": np.zeros((1, 1, SIDE, SIDE), np.float32)})["logits"][0, 0])


def test_the_typed_graph_of_the_cpu_comes_before_the_portable_one(bundle: Path) -> None:
    add_typed(bundle, "int8", "fp16")
    session = load(bundle, machine=make_machine())
    assert get_bias(session) == 100
    assert session.describe() == (
        "classifier: part/model.cpu-int8.onnx on onnxruntime-cpu, int8 (also there: fp16, fp32)\n"
        "  because it is typed for cpu\n"
        "  not any file on onnxruntime-cuda: this machine has no NVIDIA GPU"
    )
    assert get_bias(load(bundle, precision="fp16", machine=make_machine())) == 200
    assert get_bias(load(bundle, precision="fp32", machine=make_machine())) == 0


def test_a_typed_graph_of_another_target_is_not_taken_on_the_cpu(bundle: Path) -> None:
    add_typed(bundle, "fp16", target="h200")
    assert get_bias(load(bundle, machine=make_machine())) == 0


def test_a_graph_lowered_for_tensorrt_is_no_graph_for_onnx_runtime(bundle: Path) -> None:
    typed = TypedGraph(target="h200", precision="fp16", lowering="tensorrt-10", opset=20, file="part/classifier.onnx")
    change_manifest(bundle, graph={"typed": (typed, dataclasses.replace(typed, target="cpu"))})
    manifest = read_manifest(bundle)
    for machine in (make_machine(), make_machine(H200, cuda=True)):
        found = list_candidates(manifest, manifest.graphs[0], backend="onnxruntime", precision=None, machine=machine)
        assert {candidate.precision for candidate in found} == {"fp32"}


def test_a_changed_plugin_is_found_before_it_is_loaded(bundle: Path) -> None:
    (bundle / "part/plugin.so").write_bytes(b"library")
    engine = add_engine(bundle, plugins={"Op": digest_file(bundle / "part/plugin.so")})
    manifest = read_manifest(bundle)
    machine = make_machine(H200, tensorrt="8.6.0")
    (candidate,) = list_candidates(manifest, manifest.graphs[0], backend="tensorrt", precision=None, machine=machine)
    assert (candidate.file, candidate.plugins, candidate.obstacle) == (engine.file, ("part/plugin.so",), "")
    verify_candidate(bundle, manifest, candidate)
    (bundle / "part/plugin.so").write_bytes(b"LIBRARY")
    with pytest.raises(BundleError, match="a file of the bundle was changed"):
        verify_candidate(bundle, manifest, candidate)


def test_a_precision_that_is_not_there_is_an_error_not_another_precision(bundle: Path) -> None:
    add_typed(bundle, "int8")
    with pytest.raises(PreflightError) as caught:
        load(bundle, precision="fp8")
    assert str(caught.value) == (
        "graph 'classifier' has nothing for any backend in precision fp8\n"
        "  allowed: precisions of this graph there: fp32, int8\n"
        "  fix:     export or build the bundle with it, or ask for one that is there"
    )


def test_an_unknown_backend_names_the_known_ones(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"unknown backend 'tensorrt-rx'(.|\n)*did you mean 'tensorrt-rtx'"):
        load(bundle, backend="tensorrt-rx")


@pytest.mark.parametrize(
    ("machine", "changes", "reason"),
    [
        (make_machine(), {}, "built for compute capability 9.0, and this machine has no NVIDIA GPU"),
        (
            make_machine(H200, tensorrt="8.6.0"),
            {"compute_capability": "8.9"},
            "built for compute capability 8.9, NVIDIA H200 has 9.0",
        ),
        (make_machine(H200), {}, "the package 'tensorrt' does not import: No module named 'tensorrt'"),
        (make_machine(H200, tensorrt="10.3.0"), {}, "built with tensorrt 8.6.0, 10.3.0 is installed"),
        (make_machine(H200, tensorrt="8.6.1.6"), {}, "built with tensorrt 8.6.0, 8.6.1.6 is installed"),
        (
            make_machine(H200, tensorrt="8.6.0"),
            {"plugins": {"MetagenAttention": "f" * 64}},
            (
                "the bundle does not hold the plugin library of MetagenAttention (sha256 ffffffffffffffff…) that the"
                f" engine was built with (build the library and then the engine: {BUILD_COMMAND},"
                f" METAGEN_PLUGINS=LIBRARY metagen-deploy build BUNDLE; or {WITHOUT})"
            ),
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_passed_over_and_said(
    bundle: Path, machine: Machine, changes: dict[str, object], reason: str
) -> None:
    engine = add_engine(bundle, **changes)
    session = load(bundle, machine=machine)
    (choice,) = session.backend_notes
    assert (choice.backend, choice.file, choice.precision) == ("onnxruntime-cpu", "part/classifier.onnx", "fp32")
    assert f"not {engine.file} on tensorrt: {reason}" in session.describe()
    with pytest.raises(PreflightError) as caught:
        load(bundle, backend="tensorrt", machine=machine)
    assert caught.value.problem == "nothing of what was asked runs graph 'classifier' on this machine"
    assert caught.value.got == f"{engine.file} on tensorrt: {reason}"
    assert "metagen-deploy build BUNDLE" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("here", "fits"), [("8.6.0", True), ("8.6.0.12", True), ("8.6.0.post1", True), ("8.6.1", False)]
)
def test_an_engine_is_of_a_version_to_its_third_number(here: str, fits: bool, bundle: Path) -> None:
    """Builds of one release read each other's engines: what a fourth number or a wheel's suffix says is no obstacle."""
    engine = add_engine(bundle, backend_version="8.6.0.9")
    machine = make_machine(H200, tensorrt=here)
    manifest = read_manifest(bundle)
    (found,) = (
        candidate
        for candidate in list_candidates(manifest, manifest.graphs[0], backend=None, precision=None, machine=machine)
        if candidate.file == engine.file
    )
    assert (not found.obstacle) == fits, found.obstacle


def test_an_engine_nobody_built_is_a_preflight_error(bundle: Path) -> None:
    with pytest.raises(PreflightError, match="graph 'classifier' has nothing for tensorrt"):
        load(bundle, backend="tensorrt")


def test_cuda_without_a_gpu_is_passed_over_and_said(bundle: Path) -> None:
    session = load(bundle, machine=make_machine(cuda=True))
    assert "not any file on onnxruntime-cuda: this machine has no NVIDIA GPU" in session.describe()


def test_a_file_that_onnx_runtime_refuses_is_passed_over_and_said(bundle: Path) -> None:
    file = "part/model.cpu-int8.onnx"
    model = make_classifier()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Nonsense", "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    onnx.save_model(model, bundle / file)
    typed = TypedGraph(target="cpu", precision="int8", lowering="onnxruntime", opset=18, file=file)
    change_manifest(bundle, graph={"typed": (typed,)})
    session = load(bundle, machine=make_machine())
    assert session.backend_notes[0].file == "part/classifier.onnx"
    assert "cannot load this graph" in session.describe()
    with pytest.raises(PreflightError, match="Nonsense"):
        load(bundle, precision="int8", machine=make_machine())


def test_without_onnx_runtime_every_reason_is_given(bundle: Path) -> None:
    machine = dataclasses.replace(make_machine(), onnxruntime_providers=())
    with pytest.raises(PreflightError, match="the package 'onnxruntime' is not installed"):
        load(bundle, machine=machine)


@pytest.mark.parametrize(
    ("backend", "version", "asked_for", "shared"),
    [
        ("tensorrt", "8.6.1", False, False),
        ("tensorrt", "8.6.1", True, True),
        ("tensorrt", "10.3.0", False, True),
        ("tensorrt-rtx", "8.0.0", False, True),
    ],
)
def test_an_engine_of_tensorrt_8_shares_its_profiles_only_where_it_was_built_so(
    backend: str, version: str, asked_for: bool, shared: bool, bundle: Path
) -> None:
    add_engine(bundle, backend=backend, backend_version=version, shares_profiles=asked_for)
    manifest = read_manifest(bundle)
    engine = next(
        candidate
        for candidate in list_candidates(
            manifest, manifest.graphs[0], backend=None, precision=None, machine=make_machine(gpu=H200)
        )
        if candidate.file.endswith(".plan")
    )
    assert engine.shares_profiles == shared
