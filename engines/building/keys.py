"""What makes two builds the same: the key of an engine, and the name of a timing cache.

    engine key = sha256 of everything that decides an engine's content: the typed ONNX, the external tensors it reads,
                 the profiles, the precision and the nodes kept in fp32, the plugin libraries, the backend and its
                 version, the compute capabilities, the device it is tuned on, and the builder's options
    cache name = backend, its version and the compute capability: a cache of another one is refused by the compiler

The timing cache's own bytes are no part of the key: they change with every build that adds a timing, and decide how
long a build takes and which of several equal kernels wins, never what is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.base import InputProfile

_KEY_VERSION = 2  # of this digest: raised when a build means something else


@dataclass(frozen=True, kw_only=True)
class KeyInputs:
    """Everything that decides an engine's content; every field is digested."""

    model_sha256: str
    external_sha256: Mapping[str, str]  # external file, as named in the ONNX file -> digest
    profile: tuple[InputProfile, ...]
    wide_profile: tuple[InputProfile, ...]
    precision: str
    keep_fp32: tuple[str, ...]
    plugins: Mapping[str, str]  # op -> sha256 of the library that runs it
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]
    gpu: str  # "" when compiled ahead of time
    workspace_bytes: int | None
    optimization_level: int | None


def make_key(inputs: KeyInputs) -> str:
    """The engine's key, as a hexadecimal SHA-256."""
    text = json.dumps({"key_version": _KEY_VERSION, **asdict(inputs)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def name_timing_cache(folder: Path, *, backend: str, version: str, compute_capability: str) -> Path:
    """Where the timing cache of one compiler and one kind of GPU lies below `folder` (a bundle's `timing/`)."""
    return folder / f"{backend}-{version}-sm{compute_capability.replace('.', '')}.cache"
