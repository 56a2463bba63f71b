"""The backends, in one literal table; each module is imported when it is asked for.

onnxruntime    runs the typed ONNX itself: the embedded default, on any machine
tensorrt-rtx   compiled ahead of time on any x86-64 machine, runs on a GeForce or RTX GPU
tensorrt       8.6 to 11.x: compiled and run on the GPU it is for
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from engines.backends.base import Availability, Backend
from specs.errors import BuildError, name_nearest

#: name -> module, which has one `BACKEND`.
BACKENDS: Mapping[str, str] = {
    "onnxruntime": "engines.backends.onnxruntime",
    "tensorrt-rtx": "engines.backends.tensorrt_rtx",
    "tensorrt": "engines.backends.tensorrt",
}


def load_backend(name: str) -> Backend:
    """The backend called `name`; raises BuildError naming those there are."""
    if name not in BACKENDS:
        raise BuildError(
            f"unknown backend '{name}'",
            allowed=name_nearest(name, BACKENDS),
            fix="choose one of these",
        )
    backend: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return backend


def probe_backends() -> tuple[Availability, ...]:
    """What this machine can do with each backend, in the table's order."""
    return tuple(load_backend(name).probe() for name in BACKENDS)
