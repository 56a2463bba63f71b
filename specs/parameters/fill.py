"""Parameters into modules that were built on the meta device.

    ParameterSource --names, shapes, types checked--> mapped tensors as they are, derived ones into a scratch file

Sources: seeded random values (`random`), one .safetensors file (`safetensors`), and checkpoints of other libraries
(`exporters/checkpoints/`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from specs.errors import WeightsError, name_nearest
from specs.models.seeding import list_initial_stds
from specs.parameters.mapped import drop_tensor, lies_in_file, split_tensor
from specs.parameters.random import RandomParameters
from specs.parameters.safetensors import SafetensorsFile
from specs.parameters.source import PARAMETER_DTYPES, ParameterSource, StoredTensor
from specs.schema import WeightsSpec
from specs.system.pages import CHUNK_BYTES

_ALIGNMENT_BYTES = 64
_LARGE_BYTES = 1 << 20  # what is smaller stays in memory until the next `page_out`
_RANDOM_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def fill_parameters(
    components: Mapping[str, nn.Module],
    source: ParameterSource | WeightsSpec,
    *,
    dtype: torch.dtype | None = None,
    scratch: Path | None = None,
) -> None:
    """Give every parameter of `components`, built on the meta device, storage and values.

    Args:
        source: a WeightsSpec stands for what it names: random values, or a .safetensors file.
        dtype: convert all of them; None keeps each as it is stored.
        scratch: a folder; what is not mapped already then lies in a mapped file there instead of in private memory,
            so that the system can take its pages back. The file has no name any more when this returns.

    Raises:
        WeightsError: missing, extra or mis-shaped tensors, or another type, before anything is loaded; NaN, infinity;
            whatever the source raises.
    """
    expected = {f"{part}.{name}": p for part, model in components.items() for name, p in model.named_parameters()}
    if isinstance(source, WeightsSpec):
        source = open_source(source, expected, list_initial_stds(components))
    stored = source.list_tensors()
    _check_names(source.where, set(stored), set(expected))
    for name, like in expected.items():
        _check_listed(name, stored[name], like)
    derived = {
        name: (tuple(like.shape), dtype or _dtype_of(stored[name]))
        for name, like in expected.items()
        if not _is_kept(stored[name], dtype)
    }
    allocate = _map_storage(derived, scratch)
    for name in expected:
        listed = stored[name]
        if name not in derived:
            value = source.read(name)
            in_file = value.nbytes >= _LARGE_BYTES and lies_in_file(value)
        else:
            value = allocate(name)
            in_file = scratch is not None
            _write_value(source, name, listed, value)
        _check_value(name, listed, value, in_file=in_file)
        part, _, inside = name.partition(".")
        owner, _, leaf = inside.rpartition(".")
        setattr(components[part].get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def open_source(weights: WeightsSpec, expected: Mapping[str, Tensor], stds: Mapping[str, float]) -> ParameterSource:
    """What a spec's `weights` names.

    Args:
        stds: of random parameters whose modules say how they start.

    Raises:
        WeightsError: the file does not exist, is damaged, or is no .safetensors file.
    """
    if weights.source == "random":
        return RandomParameters(expected, seed=weights.seed, dtype=_RANDOM_DTYPES[weights.dtype], stds=stds)
    return SafetensorsFile(Path(weights.source))


def _is_kept(listed: StoredTensor, dtype: torch.dtype | None) -> bool:
    return listed.mapped and dtype in (None, listed.dtype)


def _dtype_of(listed: StoredTensor) -> torch.dtype:
    assert isinstance(listed.dtype, torch.dtype), "checked before"
    return listed.dtype


def _write_value(source: ParameterSource, name: str, listed: StoredTensor, out: Tensor) -> None:
    """Fill `out` with a derived tensor, or with a mapped or derived one that changes its type."""
    if not listed.mapped and listed.dtype == out.dtype:
        source.fill(name, out)
        return
    if listed.mapped:
        value = source.read(name)
    else:
        value = torch.empty(out.shape, dtype=_dtype_of(listed))
        source.fill(name, value)
    in_file, elements = lies_in_file(value), CHUNK_BYTES // value.itemsize
    for piece, place in zip(split_tensor(value), split_tensor(out, elements=elements), strict=True):
        place.copy_(piece)
        if in_file:
            drop_tensor(piece)


def _map_storage(
    wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]], folder: Path | None
) -> Callable[[str], Tensor]:
    """A function that returns a named tensor's place: in one mapped file for all `wanted`, or by itself."""
    offsets, total = {}, 0
    for name, (shape, dtype) in wanted.items():
        offsets[name] = total
        total += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    if folder is None or not total:
        return lambda name: torch.empty(wanted[name][0], dtype=wanted[name][1])
    path = folder / ".parameters"
    with path.open("wb") as file:  # a full disk is an error here; later it would be a signal that kills the process
        os.posix_fallocate(file.fileno(), 0, total)
    flat = torch.from_file(str(path), shared=True, size=total, dtype=torch.uint8)
    path.unlink()

    def allocate(name: str) -> Tensor:
        shape, dtype = wanted[name]
        length = math.prod(shape) * dtype.itemsize
        return flat[offsets[name] : offsets[name] + length].view(dtype).view(shape)

    return allocate


def _check_names(where: str, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise WeightsError(
            f"the weights file lacks {len(missing)} of {len(expected)} tensors; the first is '{missing[0]}'",
            where=where,
            got=f"{len(found)} tensors; nearest to it: {name_nearest(missing[0], extra[:8])}" if extra else None,
            fix="use weights of this spec's sizes, named <component>.<parameter>",
        )
    if extra:
        raise WeightsError(
            f"the weights file has {len(extra)} tensors that the model does not; the first is '{extra[0]}'",
            where=where,
            got=f"{len(found)} tensors",
            allowed=f"{len(expected)} tensors",
            fix="remove them from the file, or correct the spec's sizes",
        )


def _check_listed(name: str, listed: StoredTensor, like: Tensor) -> None:
    if listed.shape != tuple(like.shape):
        raise WeightsError(
            f"'{name}' has the wrong shape",
            where=listed.origin,
            got=str(list(listed.shape)),
            allowed=f"{list(like.shape)}, by the spec's sizes",
            fix="correct the spec's sizes, or use the weights that belong to it",
        )
    if listed.dtype not in PARAMETER_DTYPES.values():
        raise WeightsError(
            f"'{name}' has the wrong type",
            where=listed.origin,
            got=_spell_dtype(listed.dtype),
            allowed=", ".join(_spell_dtype(dtype) for dtype in PARAMETER_DTYPES.values()),
            fix="store it as one of these; quantisation happens at export",
        )


def _spell_dtype(dtype: torch.dtype | str) -> str:
    """`int8` for torch.int8 and for safetensors' I8."""
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    kinds = {"I": "int", "U": "uint", "F": "float"}
    return f"{kinds[dtype[0]]}{dtype[1:]}" if dtype[:1] in kinds and dtype[1:].isdigit() else dtype.lower()


def _check_value(name: str, listed: StoredTensor, value: Tensor, *, in_file: bool) -> None:
    """Look for NaN and infinity: the extremes of a piece show them, at a twentieth of the cost of `isfinite`."""
    bad = 0
    for piece in split_tensor(value):
        if piece.numel() and not all(math.isfinite(extreme) for extreme in map(float, piece.aminmax())):
            bad += int((~torch.isfinite(piece)).sum())
        if in_file:
            drop_tensor(piece)
    if bad:
        raise WeightsError(
            f"'{name}' holds NaN or infinity",
            where=listed.origin,
            got=f"{bad} of {value.numel()} values are not finite",
            fix="train or convert again; these weights give no answers",
        )
