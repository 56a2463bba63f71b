"""What every export ends with: the tools' versions, every file indexed, the manifest written."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from exporters.weights import WeightPool
from specs.bundle import Manifest
from specs.bundle.files import index_files, write_manifest

_TOOLS = ("metagen-deploy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def finish_bundle(folder: Path, manifest: Manifest, *, components: Mapping[str, WeightPool]) -> Manifest:
    """Index every file (weight pools already know their digests) and write the manifest."""
    known = {
        f"{name}/{file}": entry for name, pool in components.items() for file, entry in pool.list_entries().items()
    }
    manifest = replace(manifest, files=index_files(folder, known))
    write_manifest(folder, manifest)
    return manifest


def list_versions() -> dict[str, str]:
    """The tools that shaped the graphs."""
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue  # an uninstalled checkout has no metadata of its own
    return versions
