"""What a bundle is: the records of its manifest, the only thing exporters, engines, the edge runtime and C++ agree on.

Standard library only, Python 3.10+: an edge device reads it with nothing installed. The manifest names every file with
its digest, every graph with its inputs and outputs, every typed graph and every engine.

Not here: the manifest as text (`manifest.py`), and the files on disk (`files.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specs.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPEC_NAME = "spec.yaml"
#: How the reason of a node begins that is kept in fp32 because it makes a spectrogram.
SPECTRUM_REASON = "spectrum"
#: ... and of those that a model itself declares to leave the range of half precision (`GraphSpec.keep_float32`).
RANGE_REASON = "declared range"


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """One input or output: `shape` holds ints and dim names; dtype is numpy's name, as the caller sees it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class TypedGraph:
    """A graph lowered for one target and typed at one precision; any runtime of that lowering can build from it."""

    target: str
    precision: str
    lowering: str
    opset: int
    file: str
    keep_fp32: tuple[str, ...] = ()  # "node: reason", for every node kept above the asked precision
    plugin_file: str | None = None  # the same graph with nodes left to TensorRT plugins, where it has such
    plugin_keep_fp32: tuple[str, ...] = ()  # of that one, as `keep_fp32`; its nodes are others
    task_metric: float | None = None

    @property
    def front_end(self) -> frozenset[str]:
        """Names of the nodes that have no precision to choose.

        Those that make a spectrogram of the input, and those that the model declares to need float32.
        """
        parts = (entry.partition(": ") for entry in self.keep_fp32)
        return frozenset(name for name, _, reason in parts if reason.startswith((SPECTRUM_REASON, RANGE_REASON)))


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """A compiled engine. `key` digests every input of its build, so that a stale one is never taken for a fresh one."""

    target: str
    precision: str
    backend: str
    backend_version: str
    compute_capability: str  # "8.9"; "" for a backend without one
    gpu: str  # the device it was built on, "" when built ahead of time
    plugins: Mapping[str, str] = field(default_factory=dict)  # op -> sha256 of the library
    sizes: Mapping[str, int] = field(default_factory=dict)  # dim -> the one size it takes; {}: the manifest's ranges
    shares_profiles: bool = False  # whether several execution contexts may be in one of its optimisation profiles
    file: str
    key: str
    build_seconds: float


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of a component: the portable truth, its golden data, and what was derived from it."""

    name: str
    component: str
    file: str
    golden: str
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    precision: str = "fp32"  # of the portable file: a user's own may compute in fp16, or be quantised already
    custom_ops: tuple[str, ...] = ()
    noise_floor: Mapping[str, float] = field(default_factory=dict)  # output -> max |fp32 - fp64| of torch itself
    reduced_golden: str = ""  # why its golden data has the smallest sizes, and which
    no_noise_floor: str = ""  # why that was not measured
    probabilities: tuple[str, ...] = ()  # outputs that a Sigmoid or a Softmax bounds: their scale is 1
    evaluation: str | None = None
    held_out: str | None = None  # answers of a user's file to samples that lower precisions are judged on
    typed: tuple[TypedGraph, ...] = ()
    engines: tuple[EngineFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and digest of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole bundle. `pipeline` says how a host drives the graphs (its `kind` names a class of engines.runtime)."""

    name: str
    spec_digest: str
    created_by: Mapping[str, str]  # tool -> version
    dims: Mapping[str, tuple[int, int, int]]  # name -> min, opt, max
    pipeline: Mapping[str, Any]
    graphs: tuple[Graph, ...]
    parity: Mapping[str, float] = field(default_factory=dict)  # the spec's own limits
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def graph(self, name: str) -> Graph:
        """The graph called `name`; raises BundleError naming those there are."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise BundleError(
            f"this bundle has no graph '{name}'",
            allowed=", ".join(g.name for g in self.graphs),
            fix="name one of these",
        )
