"""What was measured: numbers only, as frozen values that become JSON or one line. Nothing here judges or prints.

Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


def _to_plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_infinite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round, for records whose only non-finite numbers are infinities."""
    return {key: math.inf if value is None else value for key, value in record.items()}


def spell_number(count: int, noun: str) -> str:
    """`1 engine`, `2 engines`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How far one tensor is from its reference. Absolute figures are in the tensor's own units."""

    name: str
    max_abs: float
    mean_abs: float
    cosine: float  # 1.0 for identical; of the flattened tensors
    reference_rms: float  # root mean square of the reference: the scale that max_abs is judged against
    non_finite: int  # NaN and Inf elements that the reference does not have


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One output of one stage against the golden data, with the limits it was judged by."""

    graph: str
    stage: str  # "model.onnx", "cpu-int8.onnx", "rtx-4090-fp16.plan"
    backend: str
    precision: str
    difference: TensorDifference
    limit_relative: float  # allowed max_abs / reference_rms
    limit_cosine: float
    needed_relative: float  # the limit this output would need to pass
    passed: bool
    reason: str = ""  # why it failed, one line
    samples: int = 1  # that were compared; of several, `needed_relative` is the rms error of the worst one


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A task metric of one stage beside the fp32 graph's."""

    graph: str
    stage: str
    backend: str
    precision: str
    metric: str  # "top1"
    value: float
    reference: float
    samples: int
    max_loss: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first tensor, in execution order, that leaves its reference."""

    tensor: str
    op_type: str
    module_path: str  # the torch module it came from, "" when unknown
    difference: TensorDifference


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Every comparison of one bundle; `not_run` says, per stage, why it could not be executed here."""

    bundle: str
    rows: tuple[ParityRow, ...]
    metrics: tuple[MetricRow, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)  # stage -> reason
    divergences: Mapping[str, Divergence] = field(default_factory=dict)  # stage -> first divergence, where one failed
    versions: Mapping[str, str] = field(default_factory=dict)
    reduced_golden: Mapping[str, str] = field(default_factory=dict)  # graph -> why its golden data is the smallest
    no_noise_floor: Mapping[str, str] = field(default_factory=dict)  # graph -> why its limits are the fixed ones

    @property
    def passed(self) -> bool:
        """True when something ran and nothing failed."""
        return bool(self.rows) and all(r.passed for r in self.rows) and all(m.passed for m in self.metrics)

    def to_json(self) -> str:
        return json.dumps(_to_plain({**asdict(self), "passed": self.passed}), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """The report that `to_json` wrote."""
        data = json.loads(text)
        del data["passed"]
        for row in (*data["rows"], *data["divergences"].values()):
            row["difference"] = TensorDifference(**_to_infinite(row["difference"]))
        data["rows"] = tuple(ParityRow(**_to_infinite(row)) for row in data["rows"])
        data["metrics"] = tuple(MetricRow(**row) for row in data["metrics"])
        data["divergences"] = {stage: Divergence(**row) for stage, row in data["divergences"].items()}
        return cls(**data)

    def summarise(self) -> str:
        if not self.rows:
            return f"{self.bundle}: nothing could be compared on this machine, {len(self.not_run)} not run"
        failed = sum(not r.passed for r in self.rows) + sum(not m.passed for m in self.metrics)
        total = len(self.rows) + len(self.metrics)
        verdict = "within tolerance" if self.passed else f"{failed} of {total} outside tolerance"
        unrun = f", {len(self.not_run)} not run" if self.not_run else ""
        return f"{self.bundle}: {spell_number(total, 'comparison')}, {verdict}{unrun}"


@dataclass(frozen=True, kw_only=True)
class PrecisionShares:
    """How much of a graph or engine is in each precision, as fractions of 1 by nodes, weight bytes and compute."""

    nodes: Mapping[str, float]
    weight_bytes: Mapping[str, float]
    compute: Mapping[str, float]  # multiply-accumulates of MatMul, Gemm, Conv and attention


@dataclass(frozen=True, kw_only=True)
class BuildRow:
    """One engine that was built, or taken unchanged because its key was the same."""

    graph: str
    target: str
    backend: str
    backend_version: str
    precision: str
    file: str
    bytes: int
    seconds: float
    reused: bool
    notes: tuple[str, ...] = ()  # what a person should know: compiler warnings, tactics out of memory, not run here
    shares: PrecisionShares | None = None  # of the compiler's own network; of the typed graph where it shows none


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Every engine of one `build`; `not_built` says, per typed graph, why this machine could not compile it."""

    bundle: str
    rows: tuple[BuildRow, ...]
    not_built: Mapping[str, str] = field(default_factory=dict)  # typed graph's file -> reason

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def summarise(self) -> str:
        total_bytes = sum(r.bytes for r in self.rows)
        seconds = sum(r.seconds for r in self.rows if not r.reused)
        unbuilt = f", {len(self.not_built)} not built here" if self.not_built else ""
        engines = spell_number(len(self.rows), "engine")
        return f"{self.bundle}: {engines}, {total_bytes / 1e6:.1f} MB, {seconds:.1f} s{unbuilt}"


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One contender of a benchmark; all rows of a report were timed in turn, in one process."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class LatencyReport:
    """Latencies measured in one run; the first row is the bundle, ratios are other / bundle."""

    bundle: str
    machine: str
    versions: Mapping[str, str]
    batch: int
    rows: tuple[LatencyRow, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def summarise(self) -> str:
        ours = self.rows[0]
        others = ", ".join(f"{r.median_ms / ours.median_ms:.2f}x {r.name}" for r in self.rows[1:])
        return f"{self.bundle}: {ours.median_ms:.3f} ms" + (f" ({others})" if others else "")
