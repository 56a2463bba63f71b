"""The one tolerance table: how far an output may be from the fp32 torch golden, by precision, with the reason.

Standard library only. What is judged, per output y against its reference r:

    relative error   max |y - r| / rms(r)      scale free, and unlike |y - r| / |r| sound where r crosses zero
    cosine           <y, r> / (|y| |r|)        catches what is small everywhere but points elsewhere
    probability      what a Sigmoid gives, where the answer itself is too far off: its logits, log(p / (1 - p)), held to
                     the limits that logits are held to, since a "no" of 1e-6 multiplies their error by 14. What is
                     nearer to 0 or 1 than `nothing` counts as so near, and an error of 2^-20 in p is none: the Sigmoid
                     of ONNX Runtime's CPU kernels is right to some 2^-24 of 1, not of p
    top-1 loss       top1(fp32) - top1(y)      on the labelled data, where a graph has some

A lower precision of a user's ONNX file is judged on several samples that calibrated nothing, together: r is all.

    every sample     rms of y - r over rms(r) at most `most`, and the cosine of all: else it loses the answers
    all together     rms error at most `fine`, or `sure_floors` times what rounding alone makes of this very model
                     (`exporters.onnx_models.rounding_noise`): else it is not rounding, and the graph is wrong
    every element    at most `least` of rms(r), or `sure_floors` times the largest that rounding makes, or `unknown`
                     where that is not known. A maximum grows with the elements, and where most are 0 (the
                     probabilities of 200 classes) one that moves by 0.1 is 1.2 of their rms: one limit cannot serve a
                     scalar and those

Measured 2026-11 in floors, eleven models (convolutions, transformers, LSTMs, a U-Net, a detector, a reader of 6625
characters): fp16 for CPUs 0.4 to 1.1, rms as largest; for TensorRT, run in ONNX Runtime, which rounds less than a GPU,
0.1 to 0.6. A weight off by 1 % is 3.2 to 24 of them. Where the file's original is known
to no floor, the golden sample judges a half graph as that of a spec.

The limit of the relative error follows the graph's own noise floor where it is known: the floor is torch's max |fp32 -
fp64| for this very graph and input, so a shallow graph gets a sharp limit and a deep one a fair limit:

    limit = clip(floor_factor * floor / rms(r), least, most)      or `unknown` without a floor
            but never below `sure_floors` floors, up to `ceiling`: a model whose own rounding is worth 1e-4 (T5 without
            its scaled queries 8.3e-5, a published text reader 1.2e-4) cannot be held to less than it knows of itself

Floors are measured for models of every size (`exporters.golden.noise_floor`), and for ONNX files by moving weights by
their last place (`exporters.onnx_models.run_apart`); `unknown` is for graphs whose float64 run does not fit into memory
or takes too long, which the manifest says.

Measured 2026-11 on random ViTs of 2 to 12 layers, width 64 to 768, two initialisations (max |y - r| / rms(r)):

    torch fp32 - fp64   3.9e-7 ... 3.0e-6          the floor
    ONNX Runtime fp32   7.8e-7 ... 4.3e-6          0.9 to 2.0 floors
    torch fp16          1.9e-3 ... 5.8e-3          1900 to 5200 floors; cosine 1 - 1.2e-6
    torch bf16          1.3e-2 ... 4.4e-2          12000 to 52000 floors; cosine 1 - 7.6e-5
    tanh for exact GELU 1.5e-5 ... 1.2e-3          what fp32 must notice: 39 to 550 floors; cosine 1 - 2.9e-11
                        5.3e-4                     the trained image_vit_digits, whose limit comes to 1.5e-5
    int8 (static Q/DQ)  3.7e-2 ... 1.3e-1          cosine 1 - 1.2e-3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specs.errors import ParityError, name_nearest


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """One row. Errors are relative (max |y - r| / rms(r)); a factor of None means that no floor decides."""

    floor_factor: float | None
    least: float  # no limit is sharper: rounding of the comparison itself
    most: float  # no limit is looser, but for models that amplify their own rounding: see `sure_floors`
    unknown: float  # without a floor
    cosine: float
    nothing: float  # a probability below is read as 0, and as near to 1 as 1: four roundings of numbers just below 1
    top1_loss: float  # share of samples
    reason: str
    sure_floors: float = 0.0  # what a right graph may be off by, in floors, however large these are
    fine: float = 0.0  # an rms error that needs no explanation
    ceiling: float = 0.0  # no limit is looser, whatever a manifest claims as its floor; `most` where that is more


#: An error of a probability that is none.
PROBABILITY_NOISE = 2.0**-20

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        floor_factor=8.0,
        least=1e-6,
        most=1e-4,
        unknown=5e-5,
        cosine=1 - 1e-7,
        nothing=2**-22,
        top1_loss=0.0,
        reason="another order of the same additions: at most 2.8 floors measured; a tanh GELU makes 39 or more",
        sure_floors=3.0,
        ceiling=1e-3,
    ),
    "fp16": Tolerance(
        floor_factor=2.0 * 2**13,
        least=2e-3,
        most=3e-2,
        unknown=2e-2,
        cosine=0.9999,
        nothing=2**-9,
        top1_loss=0.005,
        reason="fp16 rounds 2^13 times coarser than fp32: at most 0.64 of that measured, doubled for fp16 sums",
        sure_floors=3.0,
        fine=2**-13,
    ),
    "bf16": Tolerance(
        floor_factor=2.0 * 2**16,
        least=2e-2,
        most=2e-1,
        unknown=1e-1,
        cosine=0.999,
        nothing=2**-6,
        top1_loss=0.01,
        reason="bf16 rounds 2^16 times coarser than fp32: at most 0.8 of that measured, doubled",
        sure_floors=3.0,
        fine=2**-10,
    ),
    "int8": Tolerance(
        floor_factor=None,
        least=3e-1,
        most=3e-1,
        unknown=3e-1,
        cosine=0.99,
        nothing=4 / 254,
        top1_loss=0.005,
        reason="steps of 1/127 of each tensor's range, whatever the arithmetic: twice the most measured",
        sure_floors=3.0,
        fine=0.02,
    ),
}


def find_tolerance(precision: str) -> Tolerance:
    """The row of `precision`; raises ParityError naming the rows there are."""
    if precision not in TOLERANCES:
        raise ParityError(
            f"no tolerance is known for precision '{precision}'",
            allowed=name_nearest(precision, TOLERANCES),
            fix="choose one of these",
        )
    return TOLERANCES[precision]


def limit_relative_error(precision: str, *, floor: float | None, rms: float) -> float:
    """The largest allowed max |y - r| / rms(r); `floor` in the output's units, None when unknown."""
    row = find_tolerance(precision)
    if row.floor_factor is None or floor is None or not floor > 0 or not rms > 0:
        return row.unknown
    usual = min(max(row.floor_factor * floor / rms, row.least), row.most)
    return max(usual, min(row.sure_floors * floor / rms, row.ceiling))
