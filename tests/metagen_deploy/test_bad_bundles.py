"""Damaged and foreign bundles through every verb that takes one: the whole message, exit 1, nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.runtime import load
from engines.runtime.device.cuda import Gpu
from engines.runtime.preflight import Machine
from specs.bundle.files import read_manifest
from specs.errors import MetagenError, PreflightError
from tests.refusals import HAS_COMPILER, check_message, refuse, spell
from tests.small_bundles import change_manifest, make_decoder_weights, write_classifier, write_clip, write_decoder

VERBS = ("check", "run", "build", "bench", "inspect")

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("verb", VERBS)
def test_a_changed_byte_in_any_file(verb: str, here: Path, capsys: Capture) -> None:
    files = [path for path in sorted(Path("net.bundle").rglob("*")) if path.is_file() and path.name != "manifest.json"]
    assert len(files) >= 6
    for path in files:
        if verb == "build" and (path.suffix == ".plan" or path.parent.name == "reports"):
            continue  # building makes these again
        intact = path.read_bytes()
        place = len(intact) // 2
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        refuse(
            spell(verb),
            f"a file of the bundle was changed\n"
            f"  where:   {path}\n"
            "  got:     sha256 {...}…\n"
            "  allowed: sha256 {...}…\n"
            "  fix:     copy the bundle again, or export it again",
            capsys,
        )
        path.write_bytes(intact)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("change", [("batch", "bitch"), ("\n ", "\n  ")], ids=["a letter", "white space"])
def test_a_changed_byte_in_the_manifest(verb: str, change: tuple[str, str], here: Path, capsys: Capture) -> None:
    path = Path("net.bundle/manifest.json")
    path.write_text(path.read_text().replace(*change))
    refuse(
        spell(verb),
        f"the manifest was changed after it was written\n"
        f"  where:   {path}\n"
        "  allowed: the text that metagen-deploy wrote\n"
        "  fix:     copy the bundle again, or export it again",
        capsys,
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("loss", ["truncated", "removed"])
def test_a_file_that_is_not_all_there(verb: str, loss: str, here: Path, capsys: Capture) -> None:
    path = Path("net.bundle/model/weights.float.data")
    size = path.stat().st_size
    if loss == "removed":
        path.unlink()
        message = "a file of the bundle is missing\n  where:   {path}\n  fix:     copy the whole bundle again"
    else:
        path.write_bytes(path.read_bytes()[: size // 2])
        message = (
            "a file of the bundle was truncated or changed\n  where:   {path}\n"
            f"  got:     {size // 2} bytes\n  allowed: {size} bytes\n"
            "  fix:     copy the bundle again, or export it again"
        )
    refuse(spell(verb), message.replace("{path}", str(path)), capsys)


def set_typed(manifest: dict[str, Any], **values: object) -> None:
    manifest["graphs"][0]["typed"][0].update(values)


LEAVES = (
    "the manifest names a path outside the bundle: '%s'\n"
    "  where:   net.bundle/manifest.json\n"
    "  allowed: relative paths below the bundle's folder\n"
    "  fix:     do not use this bundle; export it again"
)
MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer schema": (
        lambda manifest: manifest.update(schema_version=2),
        (
            "this bundle's manifest has schema version 2\n"
            "  where:   net.bundle/manifest.json\n"
            "  allowed: up to 1, which this version of metagen-deploy reads\n"
            "  fix:     pip install --upgrade metagen-deploy"
        ),
    ),
    "path above": (lambda manifest: set_typed(manifest, file="../net.onnx"), LEAVES % "../net.onnx"),
    "absolute path": (lambda manifest: manifest["graphs"][0].update(golden="/etc/hostname"), LEAVES % "/etc/hostname"),
    "path behind a link": (lambda manifest: set_typed(manifest, file="model/link.onnx"), LEAVES % "model/link.onnx"),
    "wrong type": (
        lambda manifest: manifest["graphs"][0].update(inputs="x"),
        (
            "manifest: graphs[0].inputs must be list, got str\n"
            "  where:   net.bundle/manifest.json\n"
            "  fix:     export the bundle again"
        ),
    ),
    "no graphs": (
        lambda manifest: manifest.update(graphs=[]),
        "manifest: graphs names no graph\n  where:   net.bundle/manifest.json\n  fix:     export the bundle again",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(case: str, here: Path, capsys: Capture) -> None:
    Path("net.bundle/model/link.onnx").symlink_to(here / "net.onnx")
    change, message = MANIFESTS[case]
    path = Path("net.bundle/manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    for verb in VERBS:
        refuse(spell(verb), message, capsys)


@pytest.mark.parametrize(
    ("verb", "said"), [("check", "the golden data of graph 'model'"), ("run", "output 'y' of the graph")]
)
@pytest.mark.parametrize("shape", [(), ("batch",), ("batch", 33), (7, 32, 1)])
def test_a_manifest_that_tells_another_shape(
    verb: str, said: str, shape: tuple[int | str, ...], here: Path, capsys: Capture
) -> None:
    (output,) = read_manifest(Path("net.bundle")).graphs[0].outputs
    change_manifest(Path("net.bundle"), graph={"outputs": (replace(output, shape=shape),)})
    message = f"{said} has another shape than the manifest says\n  where:   {{...}}\n  got:     {{...}}\n"
    refuse(spell(verb), f"{message}  allowed: {list(shape)}\n  fix:     export the bundle again", capsys)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"schema_version": NaN}', "\ud800"])
def test_a_manifest_that_is_no_json(verb: str, text: str, here: Path, capsys: Capture) -> None:
    Path("net.bundle/manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    message = (
        "the manifest is not JSON\n  where:   net.bundle/manifest.json\n  got:     {...}\n  fix:     export it again"
    )
    refuse(spell(verb), message, capsys)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", [".", "net.bundle/model"])
def test_what_is_no_bundle(verb: str, place: str, here: Path, capsys: Capture) -> None:
    message = (
        f"{place} is not a bundle: it has no manifest.json\n  fix:     make one: metagen-deploy export SPEC -o BUNDLE"
    )
    refuse(spell(verb, place), message, capsys)


ODD_VALUES = (None, "x", "", -1, 0, 1, 3, 10**12, 10**40, 1.5, True, [], [1], [1, "a"], [[1]], {}, {"a": 1}, "../x")


def list_places(data: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key and item."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from list_places(value, (*at, key))


def change_place(data: Any, place: tuple[str | int, ...], value: object) -> Any:
    changed = deepcopy(data)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("write", "ask"),
    [
        (write_classifier, lambda pipeline: pipeline.classify(np.zeros((8, 8), np.float32))),
        (lambda folder: write_decoder(folder, make_decoder_weights()), lambda p: p.generate(["ab"], max_new_tokens=2)),
        (write_clip, lambda pipeline: pipeline.classify(np.zeros((9, 7), np.float32), ["a", "b"])),
    ],
    ids=["classifier", "decoder", "clip"],
)
def test_a_manifest_with_any_value_for_any_field(
    write: Callable[[Path], object], ask: Callable[[Any], object], tmp_path: Path
) -> None:
    """Each field with each odd value: it still answers, or is refused; nothing else, whatever a host makes of it."""
    folder = tmp_path / "b.bundle"
    write(folder)
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    refused = 0
    for place in list_places({key: data[key] for key in ("pipeline", "graphs", "dims")}):
        for value in ODD_VALUES:
            path.write_text(json.dumps(change_place(data, place, value)))
            try:
                with load(folder, verify=False, threads=1) as session:
                    ask(session.pipeline)
            except MetagenError:
                refused += 1
    assert refused > 300


ENGINE = "model/model.rtx-4090-fp32.tensorrt-rtx.plan"
GPUS: dict[str, tuple[Gpu | None, str, str]] = {
    "no GPU": (None, "1.7.1.116", "built for compute capability 8.9, and this machine has no NVIDIA GPU"),
    "another GPU": (
        Gpu(name="NVIDIA T4", compute_capability="7.5"),
        "1.7.1.116",
        "built for compute capability 8.9, NVIDIA T4 has 7.5",
    ),
    "another version": (
        Gpu(name="NVIDIA L4", compute_capability="8.9"),
        "9.9.9",
        "built with tensorrt-rtx {...}, 9.9.9 is installed",
    ),
}


@pytest.mark.skipif(not HAS_COMPILER, reason="no engine without the TensorRT-RTX compiler")
@pytest.mark.parametrize("case", GPUS)
def test_an_engine_for_another_machine(case: str, here: Path) -> None:
    """It is passed over with its reason; demanded, it is refused before a byte of it is read."""
    gpu, version, why = GPUS[case]
    machine = Machine(gpu=gpu, find_version=lambda module: version, onnxruntime_providers=("CPUExecutionProvider",))
    with load("net.bundle", machine=machine) as session:
        (choice,) = session.backend_notes
    assert choice.backend == "onnxruntime-cpu"
    check_message(f"error: {choice.passed_over[0]}\n", f"{ENGINE} on tensorrt-rtx: {why}")
    with pytest.raises(PreflightError) as caught:
        load("net.bundle", backend="tensorrt-rtx", machine=machine)
    check_message(
        f"error: {caught.value}\n",
        "nothing of what was asked runs graph 'model' on this machine\n"
        "  where:   net.bundle\n"
        f"  got:     {ENGINE} on tensorrt-rtx: {why}\n"
        "  fix:     metagen-deploy build BUNDLE makes an engine for this machine; "
        "or ask for no backend and no precision",
    )
