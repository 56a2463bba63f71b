"""MetagenStepAttention's CUDA kernels, compiled for the host, against torch in float64.

benchmarks/bench_step.py compares them on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.engines.plugins.kernels_on_host import compile_for_host, compile_mutant

_FILES = ("step/step_attention.cu",)
#: As of the linear kernel: float32 sums, and one rounding of a float16 result.
_LIMITS = {torch.float32: 4e-6, torch.float16: 2.5e-3}


@dataclass(frozen=True, kw_only=True)
class Case:
    batch: int = 1
    key_heads: int = 2
    groups: int = 1
    capacity: int = 40
    size: int = 16
    start: tuple[int, ...] = (20,)
    window: int = 0
    softcap: float = 0.0
    rotary: bool = False
    long_ids: bool = False


CASES = [
    Case(),
    Case(start=(0,), rotary=True),
    Case(start=(39,), groups=4, rotary=True),
    Case(start=(40,), groups=2, rotary=True),  # behind the cache: not written, all of it seen
    Case(start=(900,), long_ids=True),
    Case(batch=3, start=(3, 39, 17), groups=4, rotary=True, long_ids=True),
    Case(groups=6, size=64, start=(30,), rotary=True),  # two turns of queries
    Case(groups=9, key_heads=1, size=20, start=(33,)),
    Case(size=80, groups=3, start=(25,), rotary=True, window=7),
    Case(size=128, window=1, start=(25,)),
    Case(size=256, groups=5, rotary=True, softcap=3.0, start=(39,)),
    Case(size=33, start=(10,), softcap=1.5, window=100),
    Case(capacity=5, start=(4,), key_heads=3),
    Case(capacity=1, start=(0,), groups=2),
    Case(capacity=700, key_heads=16, start=(690,), groups=2, rotary=True),  # chunks of more than 16 slots
    Case(capacity=130, start=(128,), window=20, groups=4),  # chunks that nobody sees
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_for_host(tmp_path_factory.mktemp("attention"), _FILES, together=True)
    library.metagenStepAttentionWorkspace.restype = ctypes.c_int64
    return library


@dataclass(frozen=True)
class Tensors:
    q: torch.Tensor  # [B, H, D]
    k: torch.Tensor  # [B, K, D]
    v: torch.Tensor
    past_k: torch.Tensor  # [B, K, S, D]
    past_v: torch.Tensor
    cosine: torch.Tensor | None  # [B, D / 2]
    sine: torch.Tensor | None


def _make(case: Case, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(case.capacity)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heads, cache = case.key_heads * case.groups, (case.batch, case.key_heads, case.capacity, case.size)
    angles = draw(case.batch, case.size // 2) * 3
    return Tensors(
        q=(draw(case.batch, heads, case.size) * 2).to(dtype),
        k=(draw(case.batch, case.key_heads, case.size) * 2).to(dtype),
        v=draw(case.batch, case.key_heads, case.size).to(dtype),
        past_k=draw(*cache) * 2,
        past_v=draw(*cache),
        cosine=angles.cos() if case.rotary else None,
        sine=angles.sin() if case.rotary else None,
    )


def _rotate(x: torch.Tensor, given: Tensors) -> torch.Tensor:
    if given.cosine is None or given.sine is None:
        return x
    cosine, sine = given.cosine.double()[:, None], given.sine.double()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def _reference(case: Case, given: Tensors) -> list[torch.Tensor]:
    q, k, v = _rotate(given.q.double(), given), _rotate(given.k.double(), given), given.v.double()
    keys, values = given.past_k.double().clone(), given.past_v.double().clone()
    slots = torch.arange(case.capacity)
    seen = []
    for row, start in enumerate(case.start):
        if start < case.capacity:
            keys[row, :, start], values[row, :, start] = k[row], v[row]
        seen.append((slots <= start) & ((slots > start - case.window) if case.window else slots >= 0))
    grouped = q.reshape(case.batch, case.key_heads, case.groups, case.size)
    scores = grouped @ keys.transpose(-1, -2) * case.size**-0.5
    scores = case.softcap * (scores / case.softcap).tanh() if case.softcap else scores
    weights = scores.masked_fill(~torch.stack(seen)[:, None, None], -torch.inf).softmax(-1)
    return [(weights @ values).reshape(case.batch, -1, case.size), keys, values]


def _run(kernel: ctypes.CDLL, case: Case, given: Tensors) -> list[torch.Tensor]:
    """What the kernels write; nothing beyond it, and no more of the workspace than they ask for."""
    guard = 64
    sizes = (ctypes.c_int32 * 5)(case.batch, case.key_heads, case.groups, case.capacity, case.size)
    parts = torch.full((kernel.metagenStepAttentionWorkspace(sizes) // 4 + guard,), torch.nan)
    likes = (given.q, given.past_k, given.past_v)
    outs = [torch.full((like.numel() + guard,), torch.nan).to(like.dtype) for like in likes]
    start = torch.tensor(case.start, dtype=torch.int64 if case.long_ids else torch.int32)
    options = (ctypes.c_int32 * 3)(case.window, given.q.dtype == torch.float16, case.long_ids)
    factors = (ctypes.c_float * 2)(case.size**-0.5, case.softcap)
    tensors = (
        given.q, given.k, given.v, given.past_k, given.past_v, start, given.cosine, given.sine, *outs, parts,
    )  # fmt: skip
    pointers = (ctypes.c_void_p * 12)(*[None if tensor is None else tensor.data_ptr() for tensor in tensors])
    assert kernel.metagenStepAttention(sizes, options, factors, pointers, None) == 0
    assert all(bool(tensor[-guard:].isnan().all()) for tensor in (*outs, parts)), "it writes beyond the end"
    return [out[:-guard].reshape(like.shape) for out, like in zip(outs, likes, strict=True)]


def _error(kernel: ctypes.CDLL, case: Case, dtype: torch.dtype) -> float:
    given = _make(case, dtype)
    worst = 0.0
    for got, wanted in zip(_run(kernel, case, given), _reference(case, given), strict=True):
        difference = (got.double() - wanted).abs().max() / wanted.square().mean().sqrt()
        worst = max(worst, float(difference.nan_to_num(torch.inf)))
    return worst


@pytest.mark.parametrize("dtype", _LIMITS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_answer_as_torch(kernel: ctypes.CDLL, case: Case, dtype: torch.dtype) -> None:
    assert _error(kernel, case, dtype) < _LIMITS[dtype]


def test_the_cache_stays_as_it_was_but_for_one_slot(kernel: ctypes.CDLL) -> None:
    given = _make(case := CASES[2], torch.float16)
    _, keys, values = _run(kernel, case, given)
    for new, past in ((keys, given.past_k), (values, given.past_v)):
        changed = (new != past).any(-1).nonzero()[:, 2]
        assert set(changed.tolist()) == set(case.start)


_MUTANTS = {
    "queries not waited for": ("        __syncthreads();\n\n        Sums<kEach> sums;", "        Sums<kEach> sums;"),
    "warps not waited for": ("        __syncthreads();\n        for (int index = threadIdx.x; index < heads * s.size",
                             "        for (int index = threadIdx.x; index < heads * s.size"),
    "teams not waited for": ("    value[threadIdx.x] = sum;\n    __syncthreads();", "    value[threadIdx.x] = sum;"),
    "one slot too many": ("if (slot > start ||", "if (slot > start + 1 ||"),
    "a window off by one": ("slot <= start - call.options.window", "slot < start - call.options.window"),
    "turned the other way": ("d < half ? -widen", "d < half ? widen"),
    "no rescaling": ("weight[h] * keep + share;", "weight[h] + share;"),
    "the old keys": ("slot == start ? newK[d]", "slot == start ? call.data.pastK[place + d]"),
    "no softcap": ("cap > 0.f ? cap * tanhf(score / cap) : score", "score"),
    "the first queries again": ("int64_t const queryHead = head * s.groups + firstHead;",
                                "int64_t const queryHead = head * s.groups;"),
    "a lost chunk": ("chunk = team; chunk < call.chunks", "chunk = team; chunk < call.chunks - 1"),
    "the first row's angles": ("angle = row * half + d % half", "angle = d % half"),
}  # fmt: skip


@pytest.mark.parametrize("name", _MUTANTS)
def test_the_comparison_kills_mutants(name: str, tmp_path: Path) -> None:
    mutant = compile_mutant(tmp_path, _FILES, *_MUTANTS[name], together=True)
    mutant.metagenStepAttentionWorkspace.restype = ctypes.c_int64
    assert any(_error(mutant, case, torch.float32) > 0.01 for case in CASES)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 8, 257), (1, 1, 1, 0, 16), (1, 0, 1, 8, 16), (70000, 1, 1, 8, 16)], ids=str
)
def test_sizes_that_do_not_fit_are_refused(kernel: ctypes.CDLL, sizes: tuple[int, ...]) -> None:
    options, factors, pointers = (ctypes.c_int32 * 3)(), (ctypes.c_float * 2)(), (ctypes.c_void_p * 12)()
    assert kernel.metagenStepAttention((ctypes.c_int32 * 5)(*sizes), options, factors, pointers, None) == 1
