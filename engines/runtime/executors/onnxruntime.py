"""ONNX Runtime behind the runtime's one `execute(names, feed)`; CPU and CUDA. The only file here that names it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.runtime.preflight import ONNXRUNTIME_CUDA, Candidate
from specs.bundle import Graph, IoTensor
from specs.errors import BundleError, PreflightError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}
#: Moves Q/DQ pairs past a Reshape. Where the values are int8 and the opset has `output_dtype` (21 and later), a later
#: step makes the moved zero point uint8 and forgets the attribute (ONNX Runtime 1.31; its issues 27845 and 28491).
_SPOILING_OPTIMIZER = "QDQPropagationTransformer"
#: Lays out convolutions anew, float32 ones. Behind a Cast of float16 to float32 it follows a pointer to nothing, and
#: the process ends (ONNX Runtime 1.24 to 1.31; its issue 28392).
_CRASHING_OPTIMIZER = "NchwcTransformer"
_HALVES = ("fp16", "bf16")
_SPOILED = "output_dtype INT8 does not match y_zero_point type UINT8"
#: By default int4 weights behind a DequantizeLinear are multiplied with inputs rounded to 8 bits: 2 % of the rms away.
_INT4_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")  # 1: float32, as the file says
_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors reach the caller as exceptions


def make_ort_session(model: str | bytes, options: Any, providers: Sequence[str], *, half: bool = False) -> Any:
    """A session over a file or its bytes that computes what it says: without the optimisers that make some sound
    graphs unsound, and in no less than float32 where the file does. `options` are added to.

    Args:
        half: values between nodes are in half precision.

    Raises: what ONNX Runtime raises; its exception classes share no base but Exception.
    """
    ort = importlib.import_module("onnxruntime")
    options.add_session_config_entry(*_INT4_PRODUCTS)
    disabled = [_CRASHING_OPTIMIZER] if half else []
    try:
        return ort.InferenceSession(model, options, providers=providers, disabled_optimizers=disabled)
    except Exception as error:
        if _SPOILED not in str(error):
            raise
    disabled.append(_SPOILING_OPTIMIZER)
    return ort.InferenceSession(model, options, providers=providers, disabled_optimizers=disabled)


def open_onnx(
    path: Path, graph: Graph, candidate: Candidate, *, threads: int | None
) -> Callable[[Sequence[str], Mapping[str, Array]], Sequence[Array]]:
    """Load an ONNX file and return what runs it; safe to call from several threads at once.

    Raises:
        PreflightError: this ONNX Runtime cannot load the file, or cannot use the GPU.
        BundleError: the file's inputs or outputs are not those of the manifest.
    """
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if candidate.backend == ONNXRUNTIME_CUDA:
        providers.insert(0, "CUDAExecutionProvider")
    try:
        session = make_ort_session(str(path), options, providers, half=graph.precision in _HALVES)
    except Exception as error:  # its exception classes share no base but this one
        raise PreflightError(
            f"ONNX Runtime {ort.__version__} cannot load this graph",
            where=candidate.file,
            got=_first_line(error),
            fix="pip install --upgrade onnxruntime, or copy the bundle again",
        ) from error
    session.disable_fallback()
    if session.get_providers()[0] != providers[0]:
        raise PreflightError("ONNX Runtime could not start CUDA", where=candidate.file, fix="see its message above")
    _check_interface(path, session, graph)
    run: Callable[[Sequence[str], Mapping[str, Array]], Sequence[Array]] = session.run
    return run


def _check_interface(path: Path, session: Any, graph: Graph) -> None:
    """Names, types and sizes: a host makes arrays by what the manifest says of inputs, and cuts them by outputs."""
    for kind, found, listed in (
        ("inputs", session.get_inputs(), graph.inputs),
        ("outputs", session.get_outputs(), graph.outputs),
    ):
        got = {t.name: _DTYPES.get(t.type, t.type.removeprefix("tensor(").removesuffix(")")) for t in found}
        allowed = {t.name: t.dtype for t in listed}
        if got != allowed:
            raise BundleError(
                f"the graph's {kind} are not those of the manifest",
                where=str(path),
                got=", ".join(f"{name} {dtype}" for name, dtype in got.items()),
                allowed=", ".join(f"{name} {dtype}" for name, dtype in allowed.items()),
                fix="export the bundle again",
            )
    sizes = {t.name: list(t.shape) for t in (*session.get_inputs(), *session.get_outputs())}
    for tensor in graph.inputs:
        there, wanted = sizes[tensor.name], list(tensor.shape)
        if len(there) != len(wanted) or any(map(_differ, there, wanted)):
            raise _refuse_shape("input", tensor, path, there)
    for tensor in graph.outputs:
        there, wanted = sizes[tensor.name], list(tensor.shape)
        known = [size if isinstance(size, int) else want for size, want in zip(there, wanted, strict=False)]
        if there and (len(there) != len(wanted) or any(map(_differ, known, wanted))):  # []: of no known rank
            raise _refuse_shape("output", tensor, path, there)


def _refuse_shape(kind: str, tensor: IoTensor, path: Path, there: Sequence[object]) -> BundleError:
    return BundleError(
        f"{kind} '{tensor.name}' of the graph has another shape than the manifest says",
        where=str(path),
        got=str(list(there)),
        allowed=str(list(tensor.shape)),
        fix="export the bundle again",
    )


def _differ(there: object, wanted: object) -> bool:
    """Whether a size that the manifest fixes is another one, or free, in the graph; names are free."""
    return isinstance(wanted, int) and there != wanted


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
