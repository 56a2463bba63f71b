"""Parameters of a model: where they come from, and how they get into its modules.

    ParameterSource --names, shapes, types checked--> mapped tensors as they are, derived ones into a scratch file

A parameter is called `<component>.<parameter>`, e.g. `classifier.layers.0.attention.qkv.weight`, and keeps the type
that it is stored in: float32, float16 or bfloat16. Sources here: seeded random values, and one .safetensors file whose
tensors must be exactly the model's. Checkpoints of other libraries are sources too (`exporters/checkpoints/`).
Nothing is ever unpickled.

Memory: a parameter that is mapped costs address space; pages that a step has touched are given back. Nothing here
holds more than CHUNK_BYTES of a tensor at a time.

Seeded weights keep activations near unit variance: Linear rows are normal with std 1/sqrt(fan in), cut at two sigma.
Norm scales and biases are drawn too, around 1 and 0, so that a graph that lost one is a graph with wrong numbers.
A module whose publication starts otherwise says so (`specs/models/seeding.py`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from specs.errors import WeightsError, name_nearest
from specs.models.seeding import list_initial_stds
from specs.schema import WeightsSpec
from specs.system.pages import CHUNK_BYTES, drop_pages, list_file_mappings

#: The types that parameters are stored in, by torch's and by safetensors' name.
PARAMETER_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_ALIGNMENT_BYTES = 64
_LARGE_BYTES = 1 << 20  # what is smaller stays in memory until the next `page_out`
_RANDOM_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DRAWN_AT_ONCE = 16 << 20  # elements; a multiple of 16, in which torch draws: pieces then equal the whole


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What is known of a parameter before anything is loaded.

    Args:
        mapped: `read` hands it over as a view of a mapped file; else it is derived, and `fill` writes it.
        origin: where it comes from, for messages: "tensor 'model.norm.weight' of /x/model.safetensors".
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str  # a name stands for a type that torch or this project does not take: it is refused
    mapped: bool
    origin: str


class ParameterSource(Protocol):
    """Hands over a model's parameters by name, one at a time.

    `fill_parameters` asks for `list_tensors` once, checks names, shapes and types of all, and only then calls `read`
    or `fill` once for each. NaN and infinity are looked for there too: a source need not.
    """

    @property
    def where(self) -> str:
        """The file or folder, for messages."""

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        """Every parameter that this source has, by the model's name; cheap: headers only."""

    def read(self, name: str) -> Tensor:
        """A mapped tensor: contiguous, of the listed shape and type, alive as long as the tensor is.

        Its pages are dropped between uses, so it must lie in a file mapping that is never written to
        (`safe_open(...).get_tensor(...)` is one).
        """

    def fill(self, name: str, out: Tensor) -> None:
        """Write a derived tensor (concatenated, generated) into `out`, of the listed shape and type, piece by piece."""


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


def lies_in_file(value: Tensor, mappings: Sequence[tuple[int, int]] | None = None) -> bool:
    """Whether a tensor's bytes are those of a mapped file, whose pages can be dropped.

    Args:
        mappings: what `list_file_mappings` said, for a caller who asks for many tensors; a call takes milliseconds.
    """
    start, end = value.data_ptr(), value.data_ptr() + value.nbytes
    return any(first <= start and end <= last for first, last in mappings or list_file_mappings())


def drop_tensor(value: Tensor) -> None:
    """Give back the pages of a tensor that lies in a file mapping, and only of such a one."""
    drop_pages(value.data_ptr(), value.nbytes)


def split_tensor(value: Tensor, *, elements: int | None = None) -> Iterator[Tensor]:
    """Flat views of a contiguous tensor, one after the other, of at most CHUNK_BYTES (or `elements`) each."""
    pieces = value.detach().view(-1).split(elements or CHUNK_BYTES // value.itemsize)  # type: ignore[no-untyped-call]
    yield from pieces


@final
class RandomParameters:
    """Seeded values for every parameter of `expected`, drawn in float32 and rounded to `dtype`.

    Args:
        stds: standard deviations of some; the rest have them by name and shape.
    """

    where = "random weights"

    def __init__(
        self,
        expected: Mapping[str, Tensor],
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        stds: Mapping[str, float] | None = None,
    ) -> None:
        self._expected, self._dtype, self._stds = expected, dtype, stds or {}
        self._generator = torch.Generator().manual_seed(seed)

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        return {
            name: StoredTensor(shape=tuple(like.shape), dtype=self._dtype, mapped=False, origin=f"random '{name}'")
            for name, like in self._expected.items()
        }

    def read(self, name: str) -> Tensor:
        raise AssertionError(f"'{name}' is generated, not mapped")

    def fill(self, name: str, out: Tensor) -> None:
        """Values depend on the order of the calls, which is the order of the model's parameters."""
        mean, std = _choose_distribution(name, out)
        std = self._stds.get(name, std)
        in_file = out.nbytes >= CHUNK_BYTES and lies_in_file(out)
        for piece in split_tensor(out, elements=_DRAWN_AT_ONCE):
            drawn = piece if piece.dtype == torch.float32 else torch.empty(piece.shape)
            drawn.normal_(mean, std, generator=self._generator) if std else drawn.fill_(mean)
            piece.copy_(drawn.clamp_(mean - 2 * std, mean + 2 * std))
            if in_file:
                drop_tensor(piece)


def _choose_distribution(name: str, like: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one parameter; 0 for a constant."""
    leaf = name.rpartition(".")[2]
    if leaf == "logit_scale":
        return math.log(1 / 0.07), 0.0  # where CLIP's training starts
    if leaf == "logit_bias":
        return -10.0, 0.0  # where SigLIP's does
    mean, std = 0.0, 0.02
    if leaf in ("class_token", "query") or "embedding" in name.split(".")[-2] or leaf == "position_embedding":
        std = 0.1
    if like.dim() > 1 and "token_embedding" not in name and leaf != "position_embedding":
        std = like[0].numel() ** -0.5
    elif ("norm" in name and leaf in ("weight", "variance")) or leaf in ("attention_scale", "mlp_scale"):
        mean = 1.0
    elif leaf == "bias":
        std = 0.02
    return mean, std


@final
class SafetensorsFile:
    """The tensors of one .safetensors file, under the names they have there, mapped.

    Raises:
        WeightsError: missing or damaged file, or another format.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"weights in '{path.suffix}' files are not read: they can hold code",
                where=str(path),
                allowed=".safetensors",
                fix="convert once:"
                " safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
            )
        self._path, self.where = path, str(path)
        with _word_errors(path):
            self._file: Any = safe_open(path, framework="pt")

    def list_tensors(self) -> Mapping[str, StoredTensor]:
        with _word_errors(self._path):
            return {name: self._describe(name) for name in self._file.keys()}  # noqa: SIM118  # no mapping

    def read(self, name: str) -> Tensor:
        with _word_errors(self._path):
            value: Tensor = self._file.get_tensor(name)
        return value

    def fill(self, name: str, out: Tensor) -> None:
        raise AssertionError(f"'{name}' is mapped, not derived")

    def _describe(self, name: str) -> StoredTensor:
        header = self._file.get_slice(name)
        kind = header.get_dtype()
        return StoredTensor(
            shape=tuple(header.get_shape()),
            dtype=PARAMETER_DTYPES.get(kind, kind),
            mapped=True,
            origin=f"tensor '{name}' of {self._path}",
        )


@contextlib.contextmanager
def _word_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise WeightsError("the weights file does not exist", where=str(path), fix="correct weights.source") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "the weights file is truncated, or is not safetensors",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="copy or download it again, or convert it again",
        ) from None


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
