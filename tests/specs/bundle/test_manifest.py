"""The manifest under attack: every change of a good one either parses or is a BundleError, and never anything else."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from specs.bundle import MANIFEST_NAME, FileEntry, Manifest
from specs.bundle.files import digest_file, index_files, read_manifest, resolve_inside, verify_files, write_manifest
from specs.errors import BundleError

GOOD: dict[str, Any] = {
    "schema_version": 1,
    "name": "m",
    "spec_digest": "0" * 64,
    "created_by": {"metagen-deploy": "0.1"},
    "dims": {"batch": [1, 2, 4]},
    "pipeline": {"kind": "tensors", "graph": "model"},
    "parity": {"cosine": 0.999},
    "files": {"a/model.onnx": {"bytes": 3, "sha256": "0" * 64}},
    "graphs": [
        {
            "name": "model",
            "component": "a",
            "file": "a/model.onnx",
            "golden": "a/model.golden.npz",
            "evaluation": None,
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch"]}],
            "custom_ops": ["MetagenAttention"],
            "noise_floor": {"y": 1e-6},
            "typed": [
                {
                    "target": "cpu",
                    "precision": "int8",
                    "lowering": "onnxruntime",
                    "opset": 18,
                    "file": "a/model.cpu-int8.onnx",
                    "keep_fp32": ["n: r"],
                    "plugin_keep_fp32": ["m: r"],
                    "task_metric": 0.9,
                }
            ],
            "engines": [
                {
                    "target": "h200",
                    "precision": "fp16",
                    "backend": "tensorrt",
                    "backend_version": "8.6.0",
                    "compute_capability": "9.0",
                    "gpu": "",
                    "plugins": {"MetagenAttention": "0" * 64},
                    "file": "a/model.plan",
                    "key": "k",
                    "build_seconds": 1.5,
                }
            ],
        }
    ],
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 10**30, -(10**400), 10**400, 0.5, -0.0, 1e308, "", "x", "..", "../x", "/x", "a\0b",
    "\ud800", "x" * 5000, "a/" * 3000 + "b", [], [[]], [None], ["x"], [1, 2, 3], [3, 2, 1], [True, True, True], {},
    {"kind": 1}, {"": ""}, {"x": None}, {"x": {}}, {"x": [1, 1, 1]}, {"\ud800": "x"},
    {"../x": {"bytes": 1, "sha256": ""}},
)  # fmt: skip


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


def change(path: tuple[Any, ...], how: str, value: Any = None) -> Any:
    document = copy.deepcopy(GOOD)
    if not path:
        return value
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if how == "remove":
        del parent[path[-1]]
    elif how == "repeat" and isinstance(parent[path[-1]], list):
        parent[path[-1]] *= 2
    elif how == "rename" and isinstance(parent, dict):
        parent[value] = parent.pop(path[-1])
    else:
        parent[path[-1]] = value
    return document


def read_text(folder: Path, text: str | bytes) -> Manifest | BundleError:
    data = text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")
    (folder / MANIFEST_NAME).write_bytes(data)
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        str(error).encode("utf-8")  # it can be printed
        return error
    for name in manifest.files:  # what parses can be used
        try:
            verify_files(folder, manifest, (name,))
        except BundleError as error:
            str(error).encode("utf-8")
    return manifest


def test_the_good_one_parses_and_survives_writing(tmp_path: Path) -> None:
    manifest = read_text(tmp_path, json.dumps(GOOD))
    assert isinstance(manifest, Manifest)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_no_field_of_an_engine_is_lost_by_reading(tmp_path: Path) -> None:
    """Every field set to something that is not its default."""
    manifest = read_text(tmp_path, json.dumps(GOOD))
    assert isinstance(manifest, Manifest)
    given = {
        "str": "x", "int": 3, "float": 2.5, "bool": True, "str | None": "x", "float | None": 2.5,
        "Mapping[str, str]": {"Op": "a" * 64}, "Mapping[str, int]": {"batch": 2}, "tuple[str, ...]": ("n",),
    }  # fmt: skip
    (graph,) = manifest.graphs
    (engine,), (typed,) = graph.engines, graph.typed

    def fill(record: Any) -> Any:
        kept = ("file", "lowering", "target", "precision", "backend")
        return replace(
            record, **{f.name: given[f.type] for f in fields(record) if f.name not in kept and f.type in given}
        )

    changed = replace(manifest, graphs=(replace(graph, engines=(fill(engine),), typed=(fill(typed),)),))
    write_manifest(tmp_path, changed)
    assert read_manifest(tmp_path) == changed


def test_every_value_replaced_by_every_kind_of_value(tmp_path: Path) -> None:
    parsed = 0
    for path in walk(GOOD):
        for value in VALUES:
            parsed += isinstance(read_text(tmp_path, json.dumps(change(path, "replace", value))), Manifest)
    assert parsed > 100  # names and free texts may be anything


def test_every_key_and_item_removed_renamed_or_repeated(tmp_path: Path) -> None:
    required = {
        "schema_version",
        "name",
        "spec_digest",
        "pipeline",
        "graphs",
        "file",
        "golden",
        "dtype",
        "shape",
        "backend",
    }
    for path in walk(GOOD):
        if not path:
            continue
        removed = read_text(tmp_path, json.dumps(change(path, "remove")))
        if path[-1] in required and "pipeline" not in path[:-1]:
            assert isinstance(removed, BundleError), path
            assert "is missing" in str(removed) or "names no graph" in str(removed)
        read_text(tmp_path, json.dumps(change(path, "repeat")))
        for name in ("", "x", "schema_version", "../x"):
            read_text(tmp_path, json.dumps(change(path, "rename", name)))


def test_several_changes_at_once(tmp_path: Path) -> None:
    dice = random.Random(0)
    for _ in range(500):
        document: Any = copy.deepcopy(GOOD)
        for _ in range(dice.randint(2, 6)):
            path = dice.choice([p for p in walk(document) if p])
            parent = document
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = copy.deepcopy(dice.choice(VALUES))
        read_text(tmp_path, json.dumps(document))


def test_text_cut_or_changed_anywhere(tmp_path: Path) -> None:
    dice = random.Random(0)
    data = json.dumps(GOOD).encode()
    for end in range(0, len(data), 7):
        assert isinstance(read_text(tmp_path, data[:end]), BundleError)
    for _ in range(500):
        at = dice.randrange(len(data))
        read_text(tmp_path, data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\ufeff{}",
        b"\xff\xfe{}",
        "null",
        "[]",
        "1" * 100_000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"schema_version": NaN}',
        '{"schema_version": 1, "parity": {"cosine": 1e999}}',
        '{"schema_version": 1, "parity": {"cosine": -Infinity}}',
    ],
)
def test_documents_that_are_no_manifest(tmp_path: Path, text: str | bytes) -> None:
    assert isinstance(read_text(tmp_path, text), BundleError)


def test_a_manifest_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_NAME).open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: no disk is used
    with pytest.raises(BundleError, match="more than any manifest has"):
        read_manifest(tmp_path)


def test_a_limit_that_is_not_a_number_does_not_switch_a_gate_off(tmp_path: Path) -> None:
    for text in ("NaN", "Infinity", "1e999"):
        document = json.dumps(GOOD).replace("0.999", text)
        assert isinstance(read_text(tmp_path, document), BundleError)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("graphs", 0, "inputs", 0, "shape"), ["batch", -1], "graphs[0].inputs[0].shape must hold ints and dim names"),
        (("graphs", 0, "typed", 0, "opset"), "18", "graphs[0].typed[0].opset must be int, got str"),
        (("graphs", 0, "engines", 0, "plugins"), {"a": 1}, "graphs[0].engines[0].plugins.a must be str, got int"),
        (("dims", "batch"), [1, True, 4], "dims.batch must be [min, opt, max] in rising order, from 1 to 1048576"),
        (("dims", "batch"), [1, 8, 4], "dims.batch must be [min, opt, max] in rising order, from 1 to 1048576"),
        (("dims", "batch"), [0, 1, 4], "dims.batch must be [min, opt, max] in rising order, from 1 to 1048576"),
        (("files", "a/model.onnx", "bytes"), -1, "files[a/model.onnx].bytes must not be negative"),
        (("graphs",), GOOD["graphs"] * 2, "graphs names 'model' twice"),
        (("graphs", 0, "outputs"), GOOD["graphs"][0]["outputs"] * 2, "graphs[0].outputs names 'y' twice"),
        (("schema_version",), 0, "schema_version must be at least 1"),
    ],
)
def test_errors_name_the_field(tmp_path: Path, path: tuple[Any, ...], value: Any, words: str) -> None:
    error = read_text(tmp_path, json.dumps(change(path, "replace", value)))
    assert isinstance(error, BundleError)
    assert error.problem == f"manifest: {words}"
    assert error.where == str(tmp_path / MANIFEST_NAME)
    assert error.fix == "export the bundle again"


@pytest.mark.parametrize(
    "path",
    [
        ("graphs", 0, "file"),
        ("graphs", 0, "golden"),
        ("graphs", 0, "evaluation"),
        ("graphs", 0, "held_out"),
        ("graphs", 0, "typed", 0, "file"),
        ("graphs", 0, "typed", 0, "plugin_file"),
        ("graphs", 0, "engines", 0, "file"),
    ],
)
@pytest.mark.parametrize("outside", ["../x", "/etc/passwd", "a/../../x"])
def test_no_reference_leaves_the_bundle(path: tuple[Any, ...], outside: str, tmp_path: Path) -> None:
    error = read_text(tmp_path, json.dumps(change(path, "replace", outside)))
    assert isinstance(error, BundleError)
    assert error.problem == f"the manifest names a path outside the bundle: {outside!r}"


def test_links_in_a_circle_are_outside(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BundleError, match="outside the bundle"):
        resolve_inside(tmp_path, "a/x")


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specs.bundle.files._CHUNK_BYTES", 10)
    content = bytes(range(25))
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_known_digest_is_trusted_only_for_the_same_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    known = {"file": FileEntry(bytes=4, sha256="known")}
    assert index_files(tmp_path, known) == known
    (tmp_path / "file").write_bytes(b"five!")
    assert index_files(tmp_path, known)["file"].sha256 == hashlib.sha256(b"five!").hexdigest()
