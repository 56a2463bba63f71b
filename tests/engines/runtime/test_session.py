"""The session: what it accepts, what it refuses and in which words, and what it chooses to run a graph."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.plugins import BUILD_COMMAND, WITHOUT
from engines.runtime import Session, load
from engines.runtime.cuda import Gpu
from engines.runtime.preflight import Machine, list_candidates, verify_candidate
from specs.bundle import EngineFile, TypedGraph
from specs.bundle_files import digest_file, read_manifest, write_manifest
from specs.errors import BundleError, GraphError, InputError, ParityError, PreflightError
from tests.small_bundles import (
    CLASSES,
    SIDE,
    change_manifest,
    make_classifier,
    write_bundle,
    write_classifier,
    write_decoder,
)
from tests.small_bundles import make_decoder_weights as make_weights

H200 = Gpu(name="NVIDIA H200", compute_capability="9.0")


def make_machine(gpu: Gpu | None = None, *, tensorrt: str | None = None, cuda: bool = False) -> Machine:
    """A machine as preflight would find it, with this machine's ONNX Runtime."""

    def find_version(module: str) -> str:
        if tensorrt is None:
            raise ImportError(f"No module named '{module}'")
        return tensorrt

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider") if cuda else ("CPUExecutionProvider",)
    return Machine(gpu=gpu, find_version=find_version, onnxruntime_providers=providers)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "tiny.bundle")


@pytest.fixture
def session(bundle: Path) -> Session:
    return load(bundle, threads=1)


def make_images(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 1, SIDE, SIDE), np.float32)


def expect_logits(images: np.ndarray) -> np.ndarray:
    columns = images.sum(axis=(1, 2)) * 9 / SIDE
    return np.stack([columns[:, 0] + columns[:, 1], columns[:, 2], columns[:, 3]], axis=1)


# running


def test_run_gives_the_graphs_numbers_for_every_batch(session: Session) -> None:
    for batch in (1, 2, 3, 4):
        images = make_images(batch, seed=batch)
        outputs = session.run({"image": images})
        assert list(outputs) == ["logits"]
        assert np.abs(outputs["logits"] - expect_logits(images)).max() < 1e-5


def test_arrays_that_are_not_contiguous_are_taken_as_they_look(session: Session) -> None:
    images = np.ascontiguousarray(make_images(2).transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not images.flags.c_contiguous
    assert np.abs(session.run({"image": images})["logits"] - expect_logits(images)).max() < 1e-5


def test_outputs_chooses_by_name(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    feed = {"token_ids": np.array([[1, 2]]), "lengths": np.array([2])}
    assert list(session.graphs["decoder.prefill"].run(feed, ["keys_1", "logits"])) == ["keys_1", "logits"]
    with pytest.raises(InputError) as caught:
        session.graphs["decoder.prefill"].run(feed, ["logit"])
    assert str(caught.value) == (
        "unknown output 'logit'\n"
        "  where:   graph 'decoder.prefill'\n"
        "  allowed: keys_0, keys_1, logits, values_0, values_1 (did you mean 'logits'?)\n"
        "  fix:     ask for outputs of this graph, or leave `outputs` away for all"
    )


def test_several_graphs_must_be_run_by_name(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    with pytest.raises(InputError, match=r"session\.graphs\['decoder\.prefill'\]\.run"):
        session.run({})


def test_outputs_stay_what_they_were_after_the_next_run(session: Session) -> None:
    first = session.run({"image": make_images(seed=1)})["logits"]
    kept = first.copy()
    session.run({"image": make_images(seed=2)})
    assert (first == kept).all()


def test_threads_may_share_a_session(session: Session) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(50):
            images = make_images(1 + (seed + step) % 4, seed)
            if np.abs(session.run({"image": images})["logits"] - expect_logits(images)).max() > 1e-5:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nan_is_data_on_the_way_in_and_found_on_the_way_out_when_asked(session: Session) -> None:
    images = make_images(2)
    images[1, 0, 0, 0] = np.nan
    assert np.isnan(session.run({"image": images})["logits"]).sum() == CLASSES
    with pytest.raises(ParityError) as caught:
        session.run({"image": images}, check_finite=True)
    assert "output 'logits' holds NaN or Inf" in str(caught.value)
    assert f"{CLASSES} of {2 * CLASSES} elements" in str(caught.value)


def test_a_closed_session_says_so(bundle: Path) -> None:
    with load(bundle, threads=1) as session:
        pass
    session.close()
    with pytest.raises(InputError, match="this session is closed"):
        session.run({"image": make_images()})


# refused inputs


def test_every_part_of_an_input_error(session: Session) -> None:
    with pytest.raises(InputError) as caught:
        session.run({"image": np.zeros((9, 1, SIDE, SIDE), np.float32)})
    assert str(caught.value) == (
        "input 'image' has the wrong size on axis 0\n"
        "  where:   graph 'classifier'\n"
        "  got:     [9, 1, 4, 4]\n"
        "  allowed: float32 [batch, 1, 4, 4], batch 1..4\n"
        "  fix:     keep 'batch' in 1..4, or export with --dim batch=1:2:9"
    )


@pytest.mark.parametrize(
    ("feed", "problem", "fix"),
    [
        ({}, "input 'image' is missing", "add 'image', float32 [batch, 1, 4, 4], batch 1..4"),
        ([1], "inputs must be a dict of arrays by name", "run({'image': array})"),
        ({"image": make_images(), "mask": make_images()}, "unknown input 'mask'", "remove 'mask'"),
        ({"image": [[1.0]]}, "input 'image' is no numpy array", "np.asarray(value, dtype=np.float32)"),
        ({"image": make_images().astype(np.float64)}, "input 'image' has the wrong dtype", "array.astype(np.float32)"),
        ({"image": make_images().astype(">f4")}, "input 'image' has the wrong dtype", "array.astype(np.float32)"),
        ({"image": make_images()[0]}, "input 'image' has the wrong rank", "reshape it"),
        ({"image": make_images()[..., None]}, "input 'image' has the wrong rank", None),
        ({"image": np.zeros((1, 1, 4, 5), np.float32)}, "input 'image' has the wrong size on axis 3", "4 long"),
        ({"image": make_images()[:0]}, "input 'image' has the wrong size on axis 0", "keep 'batch' in 1..4"),
    ],
)
def test_what_a_graph_does_not_take_is_refused(session: Session, feed: object, problem: str, fix: str | None) -> None:
    for _ in range(2):  # a refused feed is not remembered as a good one
        with pytest.raises(InputError) as caught:
            session.run(feed)  # type: ignore[arg-type]
        assert caught.value.problem == problem
        assert caught.value.allowed
        assert (fix or "") in (caught.value.fix or "")


def test_a_shape_that_was_seen_excuses_nothing_else(session: Session) -> None:
    images = make_images()
    session.run({"image": images})
    with pytest.raises(InputError, match="wrong dtype"):
        session.run({"image": images.astype(np.int32)})
    with pytest.raises(InputError, match="unknown input 'extra'"):
        session.run({"image": images, "extra": images})

    class Lookalike:  # another library's array may have a numpy dtype and a shape, and lie on another device
        dtype, shape = images.dtype, images.shape

    with pytest.raises(InputError, match="is no numpy array"):
        session.run({"image": Lookalike()})  # type: ignore[dict-item]


def test_a_dim_means_one_size_in_every_input(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    with pytest.raises(InputError) as caught:
        session.graphs["decoder.prefill"].run({"token_ids": np.zeros((2, 3), np.int64), "lengths": np.array([3])})
    assert caught.value.problem == "dim 'batch' has two sizes"
    assert caught.value.got == "2 in 'token_ids', 1 in 'lengths'"


def test_what_the_backend_refuses_is_an_input_error_with_its_cause(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n] a, float[m] b) => (float[k] c) { c = Add (a, b) }'
    )
    folder = write_bundle(tmp_path / "b.bundle", {"m": model}, pipeline={"kind": "tensors", "graph": "m"}, dims={})
    session = load(folder, threads=1)
    with pytest.raises(InputError) as caught:
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    assert caught.value.problem == "onnxruntime-cpu could not run these inputs"
    assert caught.value.got == "a [2], b [3]"
    assert caught.value.__cause__ is not None


# what is chosen


def add_typed(folder: Path, *precisions: str, target: str = "cpu") -> None:
    """Typed graphs that differ from the portable one by a bias, so that a test sees which one ran."""
    typed = list(read_manifest(folder).graphs[0].typed)
    for precision in precisions:
        file = f"part/model.{target}-{precision}.onnx"
        bias = 100.0 * (len(typed) + 1)
        onnx.save_model(make_classifier(bias=bias), folder / file)
        typed.append(TypedGraph(target=target, precision=precision, lowering="onnxruntime", opset=18, file=file))
    change_manifest(folder, graph={"typed": tuple(typed)})


def add_engine(folder: Path, **changes: object) -> EngineFile:
    engine = EngineFile(
        target="h200",
        precision="fp16",
        backend="tensorrt",
        backend_version="8.6.0",
        compute_capability="9.0",
        gpu="NVIDIA H200",
        file="part/model.h200-fp16.tensorrt.plan",
        key="0" * 64,
        build_seconds=1.0,
    )
    engine = dataclasses.replace(engine, **changes)  # type: ignore[arg-type]
    (folder / engine.file).write_bytes(b"not an engine")
    change_manifest(folder, graph={"engines": (engine,)})
    return engine


def get_bias(session: Session) -> float:
    return float(session.run({"image": np.zeros((1, 1, SIDE, SIDE), np.float32)})["logits"][0, 0])


def test_the_typed_graph_of_the_cpu_comes_before_the_portable_one(bundle: Path) -> None:
    add_typed(bundle, "int8", "fp16")
    session = load(bundle, machine=make_machine())
    assert get_bias(session) == 100
    assert session.describe() == (
        "classifier: part/model.cpu-int8.onnx on onnxruntime-cpu, int8 (also there: fp16, fp32)\n"
        "  because it is typed for cpu\n"
        "  not any file on onnxruntime-cuda: this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)"
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


# damaged bundles


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_changed_byte_of_the_graph_is_found(bundle: Path) -> None:
    flip_byte(bundle / "part/classifier.onnx")
    with pytest.raises(BundleError, match=r"a file of the bundle was changed(.|\n)*part/classifier\.onnx"):
        load(bundle)


def test_a_changed_byte_of_external_weights_is_found(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "d.bundle", make_weights())
    flip_byte(folder / "part/decode.float32.data")
    with pytest.raises(BundleError, match=r"a file of the bundle was changed(.|\n)*decode\.float32\.data"):
        load(folder)


def test_a_changed_byte_of_a_file_that_is_not_used_costs_nothing(bundle: Path) -> None:
    add_engine(bundle)
    flip_byte(bundle / "part/model.h200-fp16.tensorrt.plan")
    load(bundle, machine=make_machine())


def test_a_truncated_file_is_found_even_when_it_is_not_used(bundle: Path) -> None:
    add_engine(bundle)
    (bundle / "part/model.h200-fp16.tensorrt.plan").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"truncated or changed(.|\n)*5 bytes(.|\n)*13 bytes"):
        load(bundle)


def test_a_missing_file_is_found(bundle: Path) -> None:
    (bundle / "part/classifier.golden.npz").unlink()
    with pytest.raises(BundleError, match=r"a file of the bundle is missing(.|\n)*golden\.npz"):
        load(bundle)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            load(folder)


def edit_json(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    change(raw)
    (folder / "manifest.json").write_text(json.dumps(raw))


def test_a_newer_manifest_is_refused(bundle: Path) -> None:
    edit_json(bundle, lambda raw: raw.update(schema_version=99))
    with pytest.raises(BundleError, match="schema version 99"):
        load(bundle)


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "part/../../x", "..\\x", "", "."])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    edit_json(bundle, lambda raw: raw["graphs"][0].update(file=path))  # type: ignore[index]
    with pytest.raises(BundleError, match="names a path outside the bundle"):
        load(bundle)


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    graph = bundle / "part/classifier.onnx"
    graph.rename(tmp_path / "outside.onnx")
    graph.symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(BundleError, match="names a path outside the bundle"):
        load(bundle)


def test_weights_outside_the_bundle_are_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "d.bundle", make_weights())
    (folder / "part/decode.float32.data").rename(tmp_path / "decode.float32.data")
    graph = folder / "part/decode.onnx"
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../decode.float32.data"
    graph.write_bytes(model.SerializeToString())
    change_manifest(folder)
    with pytest.raises(GraphError, match="external data outside its own folder"):
        load(folder)


def test_a_graph_that_the_manifest_does_not_list_is_refused(bundle: Path) -> None:
    """Nothing would say whether it was changed."""
    manifest = read_manifest(bundle)
    files = {name: entry for name, entry in manifest.files.items() if name != "part/classifier.onnx"}
    write_manifest(bundle, dataclasses.replace(manifest, files=files))
    with pytest.raises(BundleError, match="a file is not listed in the manifest"):
        load(bundle)


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "d.bundle", make_weights())
    manifest = read_manifest(folder)
    files = {name: entry for name, entry in manifest.files.items() if not name.endswith("decode.float32.data")}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    with pytest.raises(BundleError, match="a file is not listed in the manifest"):
        load(folder)


def test_a_graph_with_other_inputs_than_the_manifest_says_is_refused(bundle: Path) -> None:
    edit_json(bundle, lambda raw: raw["graphs"][0]["outputs"][0].update(dtype="float16"))  # type: ignore[index]
    with pytest.raises(BundleError, match=r"outputs are not those of the manifest(.|\n)*float32(.|\n)*float16"):
        load(bundle)


def test_a_file_that_is_not_onnx_is_refused(bundle: Path) -> None:
    (bundle / "part/classifier.onnx").write_bytes(b"\x00" * 100)
    change_manifest(bundle)
    with pytest.raises(GraphError, match="not an ONNX file"):
        load(bundle)


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        ({"kind": "image-clasification"}, "did you mean 'image-classification'?"),
        ({"kind": "image-classification"}, "pipeline.graph is missing"),
        ({"kind": "image-classification", "graph": 3}, "pipeline.graph must be str, got int"),
        ({"kind": "image-classification", "graph": "classifer"}, "did you mean 'classifier'?"),
        ({"kind": "image-classification", "graph": "classifier"}, "pipeline.image is missing"),
        (
            {"kind": "image-classification", "graph": "classifier", "image": {"height": 0, "width": 4, "channels": 1}},
            "pipeline.image.height must be at least 1, got 0",
        ),
        ({"kind": "text-generation", "num_layers": 1, "prefill": "classifier"}, "cannot be pipeline.prefill"),
        ({"kind": "tensors", "graph": ["classifier"]}, "pipeline.graph must be str, got list"),
    ],
)
def test_a_malformed_pipeline_is_refused_at_load(bundle: Path, pipeline: dict[str, object], problem: str) -> None:
    edit_json(bundle, lambda raw: raw.update(pipeline=pipeline))
    with pytest.raises(BundleError) as caught:
        load(bundle)
    assert problem in str(caught.value)


def test_run_costs_microseconds(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loose bound, for busy machines; benchmarks/RESULTS.md has the figure."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from bench_session_overhead import measure_overhead_us

    assert measure_overhead_us(pairs=2000)["overhead_us"] < 30
