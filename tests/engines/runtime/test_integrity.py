"""A session opens nothing that is damaged, changed or foreign: each with its words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engines.runtime import load
from specs.bundle.files import read_manifest, write_manifest
from specs.errors import BundleError, GraphError
from tests.engines.runtime.machines import add_engine, make_machine
from tests.small_bundles import (
    change_manifest,
    write_decoder,
)
from tests.small_bundles import make_decoder_weights as make_weights


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
