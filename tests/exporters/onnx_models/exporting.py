"""What the tests of foreign models export with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metagen_deploy import pipeline
from specs.bundle import Manifest
from specs.schema import Precision


def export(
    path: Path, output: Path, *targets: str, precisions: tuple[Precision, ...] = (), **options: Any
) -> tuple[Manifest, Any]:
    return pipeline.export(
        str(path),
        output=output,
        targets=targets or ("cpu",),
        precisions=precisions,
        progress=lambda *_: None,
        **options,
    )


def list_leftovers(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir() if "bundle" in path.name)
