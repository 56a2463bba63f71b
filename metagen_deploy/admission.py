"""What is refused, and when: before an export starts where that can be known, else before it becomes a bundle."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from specs.bundle import MANIFEST_NAME, SPEC_NAME, Manifest
from specs.bundle.files import digest_file, read_manifest
from specs.errors import BuildError, GraphError, OutputError, SpecError, TargetError
from specs.schema import IMPLEMENTED_PRECISIONS, Precision, Spec
from specs.sources import is_checkpoint, make_folder_error
from specs.targets import Target, load_target, require_fit

_ON_CPUS = (
    "on CPUs int8 is for products with a constant matrix, convolutions and recurrences stay fp32: "
    "leave --precision away there, or ask for int8 on a TensorRT target"
)


def admit_targets(spec: Spec, precisions: Sequence[Precision]) -> list[Target]:
    """The spec's targets, each proved large enough and able to run every precision that is asked.

    Raises:
        TargetError: with the numbers.
    """
    asked = [spec.model_copy(update={"precision": {"default": p}}) for p in precisions] or [spec]
    targets = [load_target(name) for name in spec.targets]
    for target in targets:
        for one in asked:
            require_fit(one, target)
    return targets


def is_made_of(bundle: Path, source: Path, *, target: str | None) -> bool:
    """Whether a bundle is that of an ONNX file, with graphs for `target`. One made of a spec is refused."""
    if not (bundle / MANIFEST_NAME).is_file() or not source.is_file():
        return False
    if (bundle / SPEC_NAME).is_file():
        raise OutputError(
            f"the bundle beside {source.name} was made of a spec, and would be replaced",
            where=str(bundle),
            fix=f"metagen-deploy export {shlex.quote(str(source))} -o BUNDLE, then metagen-deploy build BUNDLE",
        )
    manifest = read_manifest(bundle)
    has_target = target is None or any(t.target == target for graph in manifest.graphs for t in graph.typed)
    return manifest.spec_digest == digest_file(source) and has_target


def refuse_folder(source: str) -> None:
    """A folder that is neither a spec, nor an ONNX file, nor a checkpoint."""
    if os.path.isfile(os.path.join(source, MANIFEST_NAME)):  # noqa: PTH113, PTH118 - pathlib raises for a name too long
        raise SpecError("this is a bundle already", where=source, fix=f"metagen-deploy build {shlex.quote(source)}")
    if os.path.isdir(source) and not is_checkpoint(Path(source)):  # noqa: PTH112
        raise make_folder_error(source)


def refuse_repeats(option: str, values: Sequence[str]) -> None:
    """A value that is given twice is a slip, and would be made twice under one name."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise TargetError(f"{option} {value} is given twice", fix="keep one of the two")


def refuse_unimplemented(precisions: Sequence[Precision]) -> None:
    """Precisions that the language reserves but no pass writes are errors, not silent fp32."""
    for precision in precisions:
        if precision not in IMPLEMENTED_PRECISIONS:
            raise TargetError(
                f"precision '{precision}' is not implemented yet",
                where="--precision",
                allowed=", ".join(IMPLEMENTED_PRECISIONS),
                fix="choose one of these",
            )


def require_asked_precision(folder: Path, manifest: Manifest) -> None:
    """A precision that a user's file could not be given is an error, not a bundle of another precision.

    Raises:
        GraphError: with the shares of what it computes in.
    """
    from engines.onnx_files.precision import (
        STORED_ONLY,
        measure_front_end,
        measure_shares,
        require_precision,
        require_stored_weights,
    )

    sizes = {name: opt for name, (_, opt, _) in manifest.dims.items()}
    for graph in manifest.graphs:
        for typed in graph.typed:
            if typed.precision == graph.precision:
                continue
            path = folder / typed.file
            front_end = measure_front_end(path, sizes, typed.front_end)
            kept = tuple(entry.split(":")[0] for entry in typed.keep_fp32)
            try:
                if (typed.lowering, typed.precision) in STORED_ONLY:
                    require_stored_weights(path, kept=kept, where=typed.file)
                    continue
                require_precision(measure_shares(path, sizes), typed.precision, where=typed.file, front_end=front_end)
            except BuildError as error:
                raise GraphError(
                    f"{typed.precision} was asked for, and {typed.lowering} can compute too little of this model in it",
                    where=f"graph '{graph.name}' for target '{typed.target}'",
                    got=error.got,
                    allowed=error.allowed,
                    fix=_ON_CPUS
                    if (typed.lowering, typed.precision) == ("onnxruntime", "int8")
                    else "leave --precision away, or ask for another one or another target",
                ) from None


def require_any_int8(folder: Path, manifest: Manifest) -> None:
    """INT8 graphs that hold not one INT8 product, for any target, are an error: a part may stay, but not all of it.

    Where another target has some, `render.print_manifest` says what stays.

    Raises:
        GraphError: naming the graphs.
    """
    from engines.onnx_files.precision import lacks_weights, measure_typed_graphs

    shares = measure_typed_graphs(folder, manifest)
    asked = {
        typed.file: typed.target
        for graph in manifest.graphs
        for typed in graph.typed
        if typed.precision == "int8" and not lacks_weights(folder / typed.file)
    }
    if asked and not any(shares[file].compute.get("int8") for file in asked):
        targets = ", ".join(dict.fromkeys(asked.values()))
        raise GraphError(
            f"int8 was asked for, and nothing of this model can be computed in it for {targets}",
            where=", ".join(asked)[:200],
            got="every product stays in higher precision: on CPUs int8 is for products with matrices, not convolutions",
            allowed="at least one product in int8",
            fix="leave --precision away or ask for fp16 there; TensorRT targets take int8 convolutions",
        )
