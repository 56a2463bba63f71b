"""How the input of an INT8 product is scaled before it is rounded: measured on rows of the calibration data.

    tensor      x -> round(x / s)                   one calibrated step for all: nothing to compute at run time
    rows        x -> round(127 x / r)               r = max |row|: rows of any size keep 7 bits (`row_scale`)
    smoothed    x -> rows of (x / v), W -> v W      v a channel: loud channels hand their range to the weights
                                                    (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438)
    split       x W = rows of (x without L) W       L, the 8 loudest channels, are multiplied in high precision beside
                      + x[L] W[L]                   it (as LLM.int8, Dettmers et al. 2022, arXiv:2208.07339; here L is
                                                    the same for all rows)

Smoothing is for what a normalisation makes: its loud channels are loud in every row, and the weights bear it. Behind an
activation single channels are loud in single rows, a hundred times the median: there they are split off. Measured on
MiniLM, smoothing these costs ten times what it gains.

Every way is tried as it will run, int8 weights included: the products of the sampled rows with some columns of the
weights. Its error is the geometric mean of two: of |y' - y| / |y| in a usual row (itself a geometric mean over rows),
where quiet rows count, and of all rows together, where the loud ones do. The plainest way wins unless a dearer one is
better by its margin. Products of one input (query, key, value) are judged together and share what is quantised.

v are powers of two: dividing by them is exact in every float type, and they survive float16. Weights that several
graphs share (prefill and decode) are smoothed or split once, as the first graph wants it, so that they are stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from exporters.passes.int8.ranges import Range
from exporters.passes.int8.row_scale import find_lowest
from exporters.passes.int8.weighted import WeightedNode, round_scale
from exporters.passes.shared.derived import read_stored
from exporters.passes.shared.graph import is_onnx, read_constant

Way = Literal["tensor", "rows", "smoothed", "split"]
#: Below this error a static range is as good as its weights: int8 weights alone make 0.5 to 2 % (measured).
FINE_ERROR = 0.02
#: A range seen on fewer rows is none to rely on: the next row may saturate.
LEAST_ROWS = 64
#: How many times smaller an error has to be for what it costs: a reduction and two passes; one more; four more.
MARGINS: Mapping[Way, float] = {"rows": 1.5, "smoothed": 1.2, "split": 1.5}
#: Channels that are split off, where they are few: the rest keeps 97 % of the product in int8.
_LOUD, _LEAST_CHANNELS = 8, 256
#: How much of the spread of channels moves into the weights.
_SHARES = (0.3, 0.5, 0.7)
_COLUMNS = 256
_LARGEST_SHIFT = 6  # v in 2^-6 .. 2^6
_LEAST_SHARE = 1e-12
_DECIDED_KEY = "metagen.decided_scalings"

_WORDS: Mapping[Way, str] = {
    "tensor": "by tensor",
    "rows": "by rows",
    "smoothed": "by rows, smoothed",
    "split": "by rows, loud channels split off",
}


@dataclass(frozen=True)
class Scaling:
    """The chosen way, and the `errors` of every way that was tried.

    The input is multiplied with `factor` [K], the rows of the weights with `weights` [K]: 1 / v and v, or both 0 for
    the channels L [8] of `loud`.
    """

    way: Way
    factor: np.ndarray | None = None
    weights: np.ndarray | None = None
    loud: np.ndarray | None = None
    errors: Mapping[Way, float] = field(default_factory=dict)

    def describe(self) -> str:
        """`by rows, smoothed (error 1.2%; by tensor 8.1%, by rows 2.9%)`."""
        if self.way not in self.errors:
            return _WORDS[self.way]
        others = ", ".join(f"{_WORDS[way]} {error:.1%}" for way, error in self.errors.items() if way != self.way)
        return f"{_WORDS[self.way]} (error {self.errors[self.way]:.1%}{'; ' if others else ''}{others})"


#: Weights by name -> what was decided about them; None for weights that stay as they are.
Decided = MutableMapping[str, "Scaling | None"]


def set_decided(model: ir.Model, decided: Decided) -> None:
    """Hand on what earlier graphs decided about weights; what is decided now is added to it."""
    model.meta[_DECIDED_KEY] = decided


def choose_scalings(
    model: ir.Model, found: Iterable[WeightedNode], ranges: Mapping[str, Range], *, static: bool
) -> dict[str, Scaling]:
    """The way of every input of `found`, by its name.

    Args:
        found: the products that become int8.
        static: whether one range a tensor is to be had (Q/DQ); else every input is scaled by rows.
    """
    decided: Any = model.meta.setdefault(_DECIDED_KEY, {})
    groups: dict[str, list[WeightedNode]] = {}
    for weighted in found:
        groups.setdefault(weighted.activation.name or "", []).append(weighted)
    return {name: _choose(group, ranges.get(name), static, decided) for name, group in groups.items()}


def _choose(group: Sequence[WeightedNode], span: Range | None, static: bool, decided: Decided) -> Scaling:
    if not all(map(_takes_rows, group)):
        return Scaling("tensor")
    names = [weighted.weight.name or "" for weighted in group]
    known = [decided[name] for name in names if name in decided]
    fixed = next((scaling for scaling in known if scaling is not None), None)
    if span is None or span.rows is None or not span.rows.any():
        scaling = fixed or Scaling("tensor" if static and span else "rows")
    else:
        trial = _Trial(group, span.rows, None if static else find_lowest(group[0].activation))
        plain = [trial.try_tensor(span)] if static and span.seen >= LEAST_ROWS else []
        plain.append(trial.measure(Scaling("rows")))
        if known:
            dearer = [trial.measure(fixed)] if fixed else []
        elif _is_normalised(group[0].activation):
            dearer = [min(map(trial.measure, trial.list_smoothed()), key=_read_error)]
        else:
            dearer = [trial.measure(split) for split in trial.list_split()]
        scaling = _pick(plain, dearer, forced=fixed is not None)
    for name in names:
        decided.setdefault(name, scaling if scaling.weights is not None else None)
    return scaling


def _read_error(scaling: Scaling) -> float:
    return scaling.errors[scaling.way]


def _pick(plain: Sequence[Scaling], dearer: Sequence[Scaling], *, forced: bool) -> Scaling:
    """The plainest way that no dearer one beats by its margin; with the errors of all."""
    chosen = plain[-1]
    for one in dearer:
        if forced or _read_error(chosen) > MARGINS[one.way] * _read_error(one):
            chosen = one
    if len(plain) == 2 and not forced:
        error = _read_error(plain[0])
        if error <= max(FINE_ERROR, MARGINS["rows"] * _read_error(chosen)):
            chosen = plain[0]
    return replace(chosen, errors={way: error for one in (*plain, *dearer) for way, error in one.errors.items()})


def _takes_rows(weighted: WeightedNode) -> bool:
    """Whether a factor a row comes out of this product again."""
    node = weighted.node
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and (not biased or beta == 1.0))


def _is_normalised(value: ir.Value) -> bool:
    """Whether a normalisation with a weight a channel makes it."""
    node = value.producer()
    if node is None or is_onnx(node, "LayerNormalization", "RMSNormalization"):
        return node is not None
    constants = [tensor for one in node.inputs if (tensor := read_constant(one)) is not None]
    return is_onnx(node, "Mul", "Add") and any(len(tensor.shape) == 1 and tensor.size > 1 for tensor in constants)


def _read_columns(weighted: WeightedNode, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some columns [K, M] of a weight, and the largest of each of its rows [K]; the pages are read once."""
    stored = read_stored(weighted.tensor)
    matrix = stored.T if weighted.channel_axis == 0 else stored
    picked = np.linspace(0, matrix.shape[1] - 1, min(count, matrix.shape[1])).astype(int)
    columns = matrix[:, picked].astype(np.float32)
    largest = np.maximum(matrix.max(axis=1).astype(np.float32), -matrix.min(axis=1).astype(np.float32))
    return columns, largest


class _Trial:
    """The products of rows [R, K] with some columns [K, M] of the weights of a group, exact and as int8."""

    def __init__(self, group: Sequence[WeightedNode], rows: np.ndarray, lowest: float | None) -> None:
        self.lowest, self.levels = (0.0, 127) if lowest is None else (lowest, 255)
        self.least_level = 0 if lowest is not None else -127
        self.rows = rows[np.abs(rows).max(axis=1) > 0].astype(np.float32)
        parts = [_read_columns(weighted, _COLUMNS // len(group) + 1) for weighted in group]
        self.columns = np.concatenate([columns for columns, _ in parts], axis=1)
        self.largest = np.maximum.reduce([largest for _, largest in parts])  # of every row of the weights
        self.power = np.square(self.rows @ self.columns).sum(axis=1)
        # how loud a channel is in its loudest row, against that row's mean
        root = np.sqrt(np.mean(np.square(self.rows), axis=1, keepdims=True))
        self.loudest = (np.abs(self.rows) / root).max(axis=0)

    def try_tensor(self, span: Range) -> Scaling:
        return self.measure(Scaling("tensor"), round_scale(max(abs(span.low), abs(span.high)) / 127))

    def list_smoothed(self) -> list[Scaling]:
        """v: powers of two near loudest^share / (largest of the weights)^(1 - share), 1 in the mean."""
        useful = (self.loudest > 0) & (self.largest > 0)
        found = []
        for share in _SHARES:
            shift = np.zeros(len(useful))
            shift[useful] = share * np.log2(self.loudest[useful]) - (1 - share) * np.log2(self.largest[useful])
            shift[useful] -= shift[useful].mean() if useful.any() else 0.0
            shift = np.clip(np.rint(shift), -_LARGEST_SHIFT, _LARGEST_SHIFT)
            smoothing = np.exp2(shift).astype(np.float32)
            found.append(Scaling("smoothed", factor=1 / smoothing, weights=smoothing))
        return found

    def list_split(self) -> list[Scaling]:
        if len(self.loudest) < _LEAST_CHANNELS:
            return []
        loud = np.sort(np.argsort(-self.loudest)[:_LOUD])
        factor = np.ones(len(self.loudest), np.float32)
        factor[loud] = 0
        return [Scaling("split", factor=factor, weights=factor, loud=loud)]

    def measure(self, scaling: Scaling, step: np.ndarray | None = None) -> Scaling:
        """The same with its error; `step` is None for one of its own a row."""
        rows = self.rows if scaling.factor is None else self.rows * scaling.factor
        columns = self.columns if scaling.weights is None else self.columns * scaling.weights[:, None]
        scales = round_scale(np.abs(columns).max(axis=0) / 127)
        if step is None:
            above = rows - np.float32(self.lowest)
            steps = np.maximum(np.abs(above).max(axis=1, keepdims=True), np.float32(1e-30)) / self.levels
            rounded = np.clip(np.rint(above / steps), self.least_level, self.levels) * steps + self.lowest
        else:
            rounded = np.clip(np.rint(rows / step), -127, 127) * step
        off = rounded @ (np.rint(columns / scales) * scales) - rows @ columns
        return replace(scaling, errors={scaling.way: self._judge(np.square(off).sum(axis=1))})

    def _judge(self, off: np.ndarray) -> float:
        """From |y' - y|^2 of every row: the mean of what a usual row loses, and of what all together lose."""
        seen = self.power > 0
        if not seen.any():
            return 0.0
        usual = np.log(np.clip(off[seen] / self.power[seen], _LEAST_SHARE, 1)).mean()
        together = np.log(np.clip(off[seen].sum() / self.power[seen].sum(), _LEAST_SHARE, 1))
        return float(np.exp((usual + together) / 4))
