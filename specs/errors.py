"""The errors a user can cause, and the one way they are worded.

Standard library only: an edge device raises these too.

    MetagenError                    a user's mistake or a machine's limit: printed without a traceback, exit 1
    ├── SpecError                   the YAML: syntax, unknown key, wrong type, contradiction
    ├── TargetError                 the target does not exist, or the spec cannot fit it
    ├── WeightsError                missing, truncated, mis-shaped, extra or NaN weights
    ├── CheckpointError             a checkpoint's folder: unknown family, contradiction, custom code
    ├── CalibrationError            calibration data of the wrong kind
    ├── GraphError                  an ONNX file we cannot take, or a graph a pass cannot rewrite
    ├── ExportError                 the torch model did not become a graph
    ├── BundleError                 a bundle is damaged, newer than this tool, or points outside itself
    ├── PreflightError              this engine does not fit this machine; raised before deserialising
    ├── BuildError                  a compiler refused, with what it said translated
    ├── ParityError                 numbers outside tolerance, NaN, or outputs in another order
    ├── InputError                  what was handed to `run` does not match the graph
    ├── OutputError                 the disk is full, or a folder cannot be written
    └── MissingDependency           an extra is not installed; says which command adds it

A bug of ours is an `assert` or any other exception, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_WORDS = 60  # that an error lists
_LONGEST = 2000  # characters of one part of a message
_OWN_PACKAGES = ("metagen_deploy", "exporters", "engines", "specs")


class MetagenError(Exception):
    """Says what happened, where, what was got, what is allowed and what to do, a line each.

    Args:
        problem: one sentence without a full stop, e.g. "unknown key 'hiden_size'".
        where: `file:line`, a node's name, a tensor's name or a path.
        got: the offending value, when the problem does not already show it.
        allowed: what would have been accepted, or what is available.
        fix: the next step, as an imperative.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        got: str | None = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.where, self.got, self.allowed, self.fix = problem, where, got, allowed, fix
        rows = (("where", where), ("got", got), ("allowed", allowed), ("fix", fix))
        lines = [_shorten(problem), *(f"  {label + ':':<9}{_shorten(text)}" for label, text in rows if text)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between processes: keyword-only arguments are lost by the default."""
        return _rebuild, (type(self), self.problem, self.where, self.got, self.allowed, self.fix)


def _shorten(text: str) -> str:
    """A file may hold a key or a value of any length; its beginning says enough."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text) - _LONGEST} more characters)"


def _rebuild(
    kind: type[MetagenError], problem: str, where: str | None, got: str | None, allowed: str | None, fix: str | None
) -> MetagenError:
    return kind(problem, where=where, got=got, allowed=allowed, fix=fix)


class SpecError(MetagenError):
    """The YAML is malformed, names something unknown, or contradicts itself."""


class TargetError(MetagenError):
    """The target does not exist, or the spec cannot fit it."""


class WeightsError(MetagenError):
    """Weights are missing, truncated, mis-shaped, superfluous or not finite."""


class CheckpointError(MetagenError):
    """A checkpoint's folder that cannot be taken."""


class CalibrationError(MetagenError):
    """Calibration data is missing, empty, or of the wrong shape or type."""


class GraphError(MetagenError):
    """An ONNX file cannot be read, or a pass cannot rewrite it."""


class ExportError(MetagenError):
    """The torch model did not become an ONNX graph."""


class BundleError(MetagenError):
    """A bundle is damaged, newer than this tool, or points outside itself."""


class PreflightError(MetagenError):
    """An engine does not fit this machine; found before deserialising it."""


class BuildError(MetagenError):
    """A compiler refused the graph."""


class ParityError(MetagenError):
    """Numbers differ by more than the tolerance, are not finite, or outputs are not those of the graph."""


class InputError(MetagenError):
    """What was handed to a session does not match its graph."""


class OutputError(MetagenError):
    """Nothing could be written: the disk is full, or the folder is not writable."""


class MissingDependency(MetagenError):
    """A part of the tool needs an extra that is not installed."""


def missing_dependency(package: str, *, extra: str, needed_for: str) -> MissingDependency:
    """The error for an import that failed; `extra` is the name in pyproject's optional dependencies."""
    return MissingDependency(
        f"{needed_for} needs the package '{package}', which is not installed",
        fix=f"pip install 'metagen-deploy[{extra}]'",
    )


def translate_import_error(error: ImportError, *, extra: str, needed_for: str) -> MissingDependency:
    """The error for an import that failed on a package of others'; a failure within our own modules is raised again."""
    package = (error.name or "").split(".")[0]
    if package in _OWN_PACKAGES:
        raise error
    if isinstance(error, ModuleNotFoundError) and package:
        return missing_dependency(package, extra=extra, needed_for=needed_for)
    which = f"the package '{package}'" if package else "a package"
    return MissingDependency(
        f"{needed_for} needs {which}, which is installed and does not import",
        got=str(error),
        fix=f"pip install --upgrade 'metagen-deploy[{extra}]'",
    )


def name_nearest(word: str, known: Iterable[str]) -> str:
    """`batch, image (did you mean 'image'?)`: the known words, and the one most like `word`.

    Of more than a person would read, as of a checkpoint's tensors, the nearest alone.
    """
    words = sorted(known)
    if len(words) > _MOST_WORDS:
        nearest = difflib.get_close_matches(word[:_LONGEST], words, n=3, cutoff=0.0)
        return f"{', '.join(nearest)} and {len(words) - len(nearest)} more"
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    listed = ", ".join(words) if words else "nothing"
    return f"{listed} (did you mean '{near[0]}'?)" if near else listed
