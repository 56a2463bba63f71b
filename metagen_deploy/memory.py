"""How much host memory an export takes, estimated before it starts, so that a limit is refused and not run into.

    peak = 0.7 GB + 2 * fp32 weights

An upper estimate over every precision, int8 calibration being the dearest. Measured with `/usr/bin/time -v`, the
larger of the two processes (2 cores, torch 2.13), against the estimate: image_vit_digits int8 0.47 of 0.70 GB,
text_llm_tiny (201 MB of weights) int8 1.10 of 1.10, image_vit_base (346 MB) fp32 0.70 and int8 1.00 of 1.39,
multimodal_clip (3.34 GB) int8 and fp16 6.24 of 7.38.
"""

from __future__ import annotations

from pathlib import Path

from specs.errors import ExportError

_TOOLS_BYTES = 700_000_000  # torch, ONNX Runtime and the exporter themselves
_COPIES = 2.0  # the module's mapped weights, and the calibrating runtime's own


def require_host_memory(source: str, limit_bytes: int) -> None:
    """Refuse an export of `source` (a spec or an ONNX file) that would take more than `limit_bytes`.

    Raises:
        ExportError: with both figures. SpecError, GraphError: the source cannot be read.
    """
    weight_bytes = _count_weight_bytes(source)
    peak_bytes = int(_TOOLS_BYTES + _COPIES * weight_bytes)
    if peak_bytes > limit_bytes:
        raise ExportError(
            "this export would take more host memory than allowed",
            where=source,
            got=f"about {peak_bytes / 1e9:.2f} GB, for {weight_bytes / 1e9:.2f} GB of fp32 weights",
            allowed=f"{limit_bytes / 1e9:.2f} GB (--max-host-ram)",
            fix="raise --max-host-ram, or export on a machine with more memory",
        )


def _count_weight_bytes(source: str) -> int:
    if source.endswith(".onnx"):
        from engines.inspect import inspect_model

        return inspect_model(Path(source)).weight_bytes
    from specs.graphs import count_parameters
    from specs.load import load_spec

    return 4 * sum(count_parameters(load_spec(source)).values())
