"""How much host memory an export takes, estimated before it starts, so that a limit is refused and not run into.

    a spec       peak = 0.7 GB + max(2 * fp32 weights up to 0.54 GB,  1.2 * the largest tensor in fp32)
    ONNX files   peak = 0.7 GB + 2 * fp32 weights

An upper estimate over every precision, of the larger of the two processes: the one that exports streams weights, and
the one that checks loads small models (0.54 GB) as any application would, and leaves larger ones in their files, but
for one widened tensor at a time. An ONNX file is its own reference, and is run as it came.

Measured as VmHWM (2 cores, torch 2.13, ONNX Runtime 1.31), against the estimate: text_llm_tiny (201 MB) fp32 and fp16
0.84 of 1.10 GB, image_vit_base (346 MB) fp32 0.70 and int8 1.00 of 1.39; text_llm_8b:1b (3.0 GB stored in fp16, its
largest tensor 1.05 GB in fp32) fp16 1.14 of 1.96.
"""

from __future__ import annotations

from pathlib import Path

from metagen_deploy.sources import is_model, load_source
from specs.errors import ExportError, translate_import_error
from specs.system.mapped_session import MAPPED_BYTES

_TOOLS_BYTES = 700_000_000  # torch, ONNX Runtime and the exporter themselves
_COPIES = 2.0  # of weights that are loaded: as they are, and packed for the processor
_LARGEST = 1.2  # of the largest tensor that is widened, transposed or quantised at a time


def require_host_memory(source: str, limit_bytes: int) -> None:
    """Refuse an export of `source` (a spec, a checkpoint or an ONNX file) that would take more than `limit_bytes`.

    Raises:
        ExportError: with both figures. SpecError, GraphError: the source cannot be read.
    """
    peak_bytes, weight_bytes = _estimate(source)
    if peak_bytes > limit_bytes:
        raise ExportError(
            "this export would take more host memory than allowed",
            where=source,
            got=f"about {peak_bytes / 1e9:.2f} GB, for {weight_bytes / 1e9:.2f} GB of fp32 weights",
            allowed=f"{limit_bytes / 1e9:.2f} GB (--max-host-ram)",
            fix="raise --max-host-ram, or export on a machine with more memory",
        )


def _estimate(source: str) -> tuple[int, int]:
    """Peak and weights, in bytes."""
    if is_model(source):
        from engines.onnx_files.inspect import inspect_model

        weight_bytes = inspect_model(Path(source)).weight_bytes
        return int(_TOOLS_BYTES + _COPIES * weight_bytes), weight_bytes
    from specs.graphs import count_parameters

    spec = load_source(source)
    weight_bytes = 4 * sum(count_parameters(spec).values())
    if weight_bytes <= MAPPED_BYTES:
        return int(_TOOLS_BYTES + _COPIES * weight_bytes), weight_bytes
    try:
        from exporters.memory import find_largest_tensor  # torch knows the shapes
    except ImportError as error:
        raise translate_import_error(error, extra="export", needed_for="export") from error
    streamed = _LARGEST * 4 * find_largest_tensor(spec)
    return int(_TOOLS_BYTES + max(_COPIES * MAPPED_BYTES, streamed)), weight_bytes
