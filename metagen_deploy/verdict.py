"""A failed parity report as one error that names the worst offender and the next step."""

from __future__ import annotations

from specs.errors import MetagenError, ParityError
from specs.report import ParityReport, ParityRow


def _advise_on(row: ParityRow) -> str:
    if row.precision == "int8":
        return "give calibration data that is like the real inputs, or ask for a higher precision"
    if row.precision == "fp32":
        return "this precision leaves no room for it: report it with the model, or export for another target"
    return "ask for a higher precision for this component, or widen the spec's `parity` if the task allows it"


def _advise_on_file(row: ParityRow, *, calibrated: bool) -> str:
    """For a user's ONNX file: there is no spec to change, and its inputs may have been made up."""
    if not calibrated:
        made_up = "these inputs were made up: give real ones, 64 or more, by --calibration FILE.npz"
        return made_up if row.precision == "fp32" else f"{made_up}; or leave --precision {row.precision} away"
    if row.precision == "fp32":
        return (
            "the file itself may answer with noise on these samples: try others; if it stays, report it with the model"
        )
    return f"your own samples lose this much in {row.precision}: ask for a higher precision"


def raise_first_failure(report: ParityReport, *, own_file: bool = False, calibrated: bool = False) -> None:
    """Turn a failed report into an error that names the worst offender.

    Args:
        own_file: the bundle is of a user's ONNX file.
        calibrated: with samples of the user's.
    """
    for row in report.rows:
        if not row.passed:
            divergence = report.divergences.get(row.stage)
            raise ParityError(
                f"output '{row.difference.name}' of {row.stage} is outside tolerance: {row.reason}",
                where=f"graph '{row.graph}' on {row.backend}"
                + (f", first diverging at '{divergence.tensor}' ({divergence.module_path})" if divergence else ""),
                got=f"relative error {row.needed_relative:.3g}, cosine {row.difference.cosine:.6f}",
                allowed=f"relative error {row.limit_relative:.3g}, cosine {row.limit_cosine:.6f}",
                fix=_advise_on_file(row, calibrated=calibrated) if own_file else _advise_on(row),
            )
    for metric in report.metrics:
        if not metric.passed:
            raise ParityError(
                f"{metric.metric} of {metric.stage} fell from {metric.reference:.2%} to {metric.value:.2%}",
                where=f"graph '{metric.graph}' on {metric.backend}",
                allowed=f"a loss of {metric.max_loss:.2%}",
                fix="ask for a higher precision for this component, or give it better calibration data",
            )
    raise MetagenError("nothing could be compared on this machine", fix="see what is missing: metagen-deploy doctor")
