"""Read the structure of an ONNX file with the standard library alone: nodes, types, weights' names, never their values.

A device that builds engines has TensorRT and numpy and no `onnx` package, yet must refuse a damaged file before a
compiler sees it (TensorRT's parser takes an empty file for an empty network, and any opset for a known one), digest
the external data for the engine's key, and name the torch module of a node that the compiler refused.

    file --map--> bytes --protobuf--> OnnxFile (records) --check external data--> OnnxFile
"""

from __future__ import annotations

import mmap
from pathlib import Path, PurePosixPath

from engines.onnx_files.protobuf import Buffer, MalformedError, parse_model
from engines.onnx_files.records import OnnxFile
from specs.bundle import Manifest
from specs.bundle.files import resolve_inside
from specs.errors import BundleError, GraphError


def read_onnx(path: Path) -> OnnxFile:
    """Read and check one ONNX file.

    Raises:
        GraphError: the file is missing, not ONNX, truncated, empty of outputs, or its external data is missing,
            too short or outside the file's own folder.
    """
    if not path.is_file():
        raise GraphError("there is no such ONNX file", where=str(path), fix="give the path of a .onnx file")
    if path.stat().st_size == 0:
        raise GraphError("the ONNX file is empty", where=str(path), fix="write or copy it again")
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # closed when the last slice of it is gone
    model = parse_onnx(memoryview(mapped), path)
    _check_external_data(model)
    return model


def parse_onnx(buffer: Buffer, path: Path) -> OnnxFile:
    """The same for bytes; `path` is only named in errors. External data is not looked for."""
    try:
        model = parse_model(buffer, path)
    except (MalformedError, RecursionError) as error:
        raise GraphError(
            "this is not an ONNX file, or it is truncated",
            where=str(path),
            got=str(error) or "nesting too deep",
            allowed="a serialised onnx.ModelProto",
            fix="export or copy the file again",
        ) from None
    if not model.ir_version or not model.graph.outputs or not model.opsets:
        missing = "a graph with outputs" if model.opsets and model.ir_version else "an IR version and an opset import"
        raise GraphError(
            "this is not an ONNX file, or it is truncated",
            where=str(path),
            got=f"a file without {missing}",
            allowed="a serialised onnx.ModelProto",
            fix="export or copy the file again",
        )
    return model


def require_listed_weights(folder: Path, manifest: Manifest, file: str) -> tuple[str, ...]:
    """The bundle's files that hold the weights of its ONNX file `file`, each listed in the manifest with a digest.

    Raises:
        BundleError: one is not listed. GraphError: as `read_onnx`.
    """
    model = read_onnx(resolve_inside(folder, file))
    files = tuple((PurePosixPath(file).parent / name).as_posix() for name in model.list_external_files())
    for name in files:
        if name not in manifest.files:
            raise BundleError(
                "a file is not listed in the manifest", where=str(folder / name), fix="export the bundle again"
            )
    return files


def _check_external_data(model: OnnxFile) -> None:
    folder = model.path.parent
    sizes: dict[str, int] = {}
    for weight in model.walk_weights():
        if not weight.location:
            continue
        if weight.location not in sizes:
            sizes[weight.location] = _measure_external(model.path, folder, weight.location)
        end = weight.offset + (weight.nbytes if weight.length is None else weight.length)
        if weight.offset < 0 or end > sizes[weight.location] or (weight.length or 0) < 0:
            raise GraphError(
                "an external data file is too short",
                where=str(folder / weight.location),
                got=f"{sizes[weight.location]} bytes",
                allowed=f"{end} bytes or more, for the tensor '{weight.name}'",
                fix="copy the whole model again, or export it again",
            )


def _measure_external(path: Path, folder: Path, location: str) -> int:
    pure = PurePosixPath(location)
    target = folder / location
    bad = pure.is_absolute() or ".." in pure.parts or "\\" in location or "\0" in location
    if bad or not target.resolve().is_relative_to(folder.resolve()):
        raise GraphError(
            f"the ONNX file names external data outside its own folder: {location!r}",
            where=str(path),
            allowed="relative paths below the folder of the ONNX file",
            fix="do not use this file; export the model again",
        )
    if not target.is_file():
        raise GraphError(
            "the external data of this ONNX file is missing",
            where=str(target),
            fix=f"copy '{location}' beside {path.name}: the weights lie in it",
        )
    return target.stat().st_size
