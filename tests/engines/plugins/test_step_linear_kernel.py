"""MetagenStepLinear's CUDA kernel, compiled for the host, against torch in float64.

benchmarks/bench_step.py compares it on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.engines.plugins.kernels_on_host import compile_for_host, compile_mutant

_FILES = ("step/multiply_columns.cu", "step/multiply_lines.cu", "step/step_linear.cpp")
_GATES = ("none", "silu", "gelu", "gelu_tanh")
#: Largest difference over the root mean square of what is wanted: sums of some hundred products in float32, and the
#: one rounding of a float16 result that may be four times the root mean square (2^-11 * 4).
_LIMITS = {torch.float32: 2e-6, torch.float16: 2.5e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    rows: int = 1
    depth: int = 96
    columns: tuple[int, ...] = (64,)
    norm: bool = False
    bias: bool = False
    residual: bool = False
    gate: str = "none"
    transposed: bool = False
    vectors: int = 0


CASES = [
    Case(),
    Case(rows=2, bias=True),
    Case(rows=3, norm=True),
    Case(rows=5, residual=True, bias=True),
    Case(rows=9, norm=True, columns=(64, 16, 16)),
    Case(norm=True, columns=(96, 32), bias=True),
    Case(depth=700, columns=(256,), norm=True, residual=True),
    Case(columns=(37,), bias=True, residual=True),  # no whole packs
    Case(rows=4, columns=(33, 7, 1), norm=True),
    Case(rows=2, depth=1, columns=(8,)),
    Case(rows=17, depth=513, columns=(24, 40)),
    *(Case(rows=3, columns=(72, 72), gate=gate, norm=gate == "silu") for gate in _GATES[1:]),
    Case(rows=8, columns=(9, 9), gate="silu"),
    Case(columns=(50,), transposed=True),
    Case(rows=3, depth=513, columns=(21, 8, 1), transposed=True, norm=True, bias=True),  # no whole packs
    Case(rows=9, depth=600, columns=(33,), transposed=True, norm=True, residual=True),
    *(Case(rows=2, columns=(104,), vectors=vectors, norm=True) for vectors in (1, 2, 4)),
    *(Case(columns=(104, 104), vectors=vectors, gate="gelu") for vectors in (1, 2, 4)),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_for_host(tmp_path_factory.mktemp("linear"), _FILES, together=True)


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    weights: list[torch.Tensor]
    norm: torch.Tensor | None
    biases: list[torch.Tensor]
    residual: torch.Tensor | None


def _make(case: Case, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(case.depth)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return Tensors(
        x=draw(case.rows, case.depth) * 2,
        weights=[
            draw(*((n, case.depth) if case.transposed else (case.depth, n))) / case.depth**0.5 for n in case.columns
        ],
        norm=draw(case.depth) if case.norm else None,
        biases=[draw(n) for n in case.columns] if case.bias else [],
        residual=draw(case.rows, case.columns[0]) if case.residual else None,
    )


_EPSILON = 0.25  # large enough to be seen


def _reference(case: Case, given: Tensors) -> list[torch.Tensor]:
    x = given.x.double()
    if given.norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + _EPSILON).sqrt() * given.norm.double()
    found = [x @ (weight.T if case.transposed else weight).double() for weight in given.weights]
    found = [y + bias.double() for y, bias in zip(found, given.biases, strict=True)] if given.biases else found
    if given.residual is not None:
        found[0] = found[0] + given.residual.double()
    if case.gate == "none":
        return found
    act = {"silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": _gelu_tanh}[case.gate]
    return [act(found[0]) * found[1]]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


def _pointers(*tensors: torch.Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _three(tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
    return [*tensors, *[None] * (3 - len(tensors))]


def _run(kernel: ctypes.CDLL, case: Case, given: Tensors) -> list[torch.Tensor]:
    """What the kernel writes; nothing beyond it."""
    guard = 64
    count = len(case.columns) if case.gate == "none" else 1
    outs = [torch.full((case.rows * n + guard,), torch.nan).to(given.x.dtype) for n in case.columns[:count]]
    sizes = (ctypes.c_int32 * 6)(case.rows, case.depth, len(case.columns), *case.columns)
    half, gate = given.x.dtype == torch.float16, _GATES.index(case.gate)
    options = (ctypes.c_int32 * 4)(gate, half, case.transposed, case.vectors)
    pointers = [
        *_pointers(given.x, *_three(given.weights), given.norm, *_three(given.biases), given.residual),
        *_pointers(*_three(outs)),
    ]
    epsilon = ctypes.c_float(_EPSILON)
    assert kernel.metagenStepLinear(sizes, options, epsilon, (ctypes.c_void_p * 12)(*pointers), None) == 0
    assert all(bool(out[-guard:].isnan().all()) for out in outs), "it writes beyond the end"
    return [out[:-guard].reshape(case.rows, n) for out, n in zip(outs, case.columns, strict=False)]


def _error(kernel: ctypes.CDLL, case: Case, dtype: torch.dtype) -> float:
    given = _make(case, dtype)
    return _differ(_run(kernel, case, given), _reference(case, given))


def _differ(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference over the root mean square; infinite where something is no number."""
    pairs = zip(got, wanted, strict=True)
    return max(
        float(((one.double() - other).abs().max() / other.square().mean().sqrt()).nan_to_num(torch.inf))
        for one, other in pairs
    )


@pytest.mark.parametrize("dtype", _LIMITS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_answers_as_torch(kernel: ctypes.CDLL, case: Case, dtype: torch.dtype) -> None:
    assert _error(kernel, case, dtype) < _LIMITS[dtype]


@pytest.mark.parametrize("dtype", _LIMITS)
@pytest.mark.parametrize("transposed", [False, True])
def test_memory_that_is_not_aligned_is_read_value_by_value(
    kernel: ctypes.CDLL, dtype: torch.dtype, transposed: bool
) -> None:
    case = Case(rows=3, columns=(64, 32), norm=True, transposed=transposed)
    given = _make(case, dtype)
    moved = replace(given, x=_move(given.x), weights=[_move(weight) for weight in given.weights])
    assert _differ(_run(kernel, case, moved), _reference(case, given)) < _LIMITS[dtype]


def _move(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one place behind an address of 64 bytes."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


_MUTANTS = {
    "warps not waited for": ("    __syncthreads();\n\n    for (int index", "    for (int index"),
    "no epsilon": ("static_cast<float>(p.shape.depth) + p.options.epsilon)", "static_cast<float>(p.shape.depth))"),
    "a lost warp": ("for (int w = 0; w < kWarps; ++w) {\n            float const* const from",
                    "for (int w = 1; w < kWarps; ++w) {\n            float const* const from"),
    "a lost line": ("for (int k = threadIdx.x / vectors; k <", "for (int k = threadIdx.x / vectors + 1; k <"),
    "a lost lane": ("for (int k = lane * kPack; k <", "for (int k = lane * kPack + kPack; k <"),
    "another row's sum": ("whole = sumWarp(sum[r])", "whole = sumWarp(sum[0])"),
    "lanes of another vector": ("offset >= vectors; offset /= 2", "offset >= 1; offset /= 2"),
    "gate and up swapped": ("y = activate(y, p.options.gate) * (side[kSides - 1] * inverse)",
                            "y = activate(side[kSides - 1] * inverse, p.options.gate) * y"),
    "another matrix's bias": ("p.data.biases[which])[column]", "p.data.biases[0])[column]"),
    "rows shifted": ("place = static_cast<int64_t>(row)", "place = static_cast<int64_t>(row / 2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", _MUTANTS)
def test_the_comparison_kills_mutants(name: str, tmp_path: Path) -> None:
    mutant = compile_mutant(tmp_path, _FILES, *_MUTANTS[name], together=True)
    assert any(_error(mutant, case, torch.float32) > 0.01 for case in CASES)


@pytest.mark.parametrize(
    "sizes",
    [(1, 8, 4, 8, 8, 8), (1, 0, 1, 8, 0, 0), (1, 8, 1, 0, 0, 0), (70000, 8, 1, 8, 0, 0)],
    ids=["four matrices", "no depth", "no columns", "too many rows"],
)
def test_sizes_that_do_not_fit_are_refused(kernel: ctypes.CDLL, sizes: tuple[int, ...]) -> None:
    options, pointers = (ctypes.c_int32 * 4)(), (ctypes.c_void_p * 12)()
    assert kernel.metagenStepLinear((ctypes.c_int32 * 6)(*sizes), options, ctypes.c_float(0), pointers, None) == 1


def test_a_gate_wants_two_matrices_of_one_width_line_by_line(kernel: ctypes.CDLL) -> None:
    pointers = (ctypes.c_void_p * 12)()
    for sizes, transposed in (((1, 8, 1, 8, 0, 0), 0), ((1, 8, 2, 8, 16, 0), 0), ((1, 8, 2, 8, 8, 0), 1)):
        silu = (ctypes.c_int32 * 4)(1, 0, transposed, 0)
        assert kernel.metagenStepLinear((ctypes.c_int32 * 6)(*sizes), silu, ctypes.c_float(0), pointers, None) == 1
