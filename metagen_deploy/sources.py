"""What a SPEC, a CHECKPOINT or a MODEL.onnx of the command line is, by its name and what lies there."""

from __future__ import annotations

import shlex
from pathlib import Path

from specs.errors import SpecError, translate_import_error
from specs.schema import Spec


def is_model(source: str | Path) -> bool:
    """Whether it is called as an ONNX file is."""
    return str(source).lower().endswith(".onnx")


def load_source(source: str) -> Spec:
    """A shipped spec, a spec's YAML file, or what a checkpoint's folder says of itself."""
    from specs.load import load_spec
    from specs.sources import is_checkpoint

    if is_model(source) and Path(source).is_file():
        fix = f"metagen-deploy inspect {shlex.quote(source)}"
        raise SpecError("this is an ONNX file, and no spec", where=source, fix=fix)
    if not is_checkpoint(Path(source)):
        return load_spec(source)
    try:
        from exporters.checkpoints import read_spec
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="reading a checkpoint") from error
    return read_spec(Path(source))
