"""metagen-deploy: from a YAML spec or any ONNX file to a verified bundle, and to answers.

Embedding needs two lines, numpy and one backend (ONNX Runtime or TensorRT), nothing else:

    from metagen_deploy import load
    answer = load("digits.bundle").run({"image": image})

Importing this package imports nothing: every floor below is reached only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from engines.runtime import Session

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    bundle: str | Path,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    verify: bool = True,
) -> Session:
    """Open a bundle for running; the same as `engines.runtime.load`.

    Args:
        bundle: the bundle's folder.
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx"; the best that runs on this machine when absent.
        precision: "fp32", "fp16", "int8", ... to demand one; the bundle's first choice when absent.
        threads: of ONNX Runtime on the CPU; one a core when absent.
        verify: digest the files that are used; False compares sizes only.

    Raises:
        MetagenError: the bundle is damaged, or nothing in it fits this machine; see `specs.errors`.
    """
    from pathlib import Path

    from engines.runtime import load as load_session

    return load_session(Path(bundle), backend=backend, precision=precision, threads=threads, verify=verify)
