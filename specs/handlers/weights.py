"""Parameters of a model: seeded, or from a .safetensors file whose tensors must be exactly the model's.

A tensor is called `<component>.<parameter>`, e.g. `classifier.layers.0.attention.qkv.weight`. Stored float16 and
bfloat16 are widened; integers and float64 are refused. Nothing is ever unpickled.

Seeded weights keep activations near unit variance: Linear rows are normal with std 1/sqrt(fan in), cut at two sigma.
Norm scales and biases are drawn too, around 1 and 0, so that a graph that lost one is a graph with wrong numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from specs.errors import WeightsError, name_nearest
from specs.schema import WeightsSpec

_MAPPED_ALIGNMENT = 64  # elements
_FLOATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def fill_parameters(
    components: Mapping[str, nn.Module], weights: WeightsSpec, *, dtype: torch.dtype, scratch: Path | None = None
) -> None:
    """Give every parameter of `components`, built on the meta device, storage and values; one tensor at a time.

    Args:
        scratch: a folder; the parameters then lie in a mapped file there instead of in private memory, so that the
            system can take their pages back. The file has no name any more when this returns.

    Raises:
        WeightsError: see `load_parameters`.
    """
    expected = {f"{part}.{name}": p for part, model in components.items() for name, p in model.named_parameters()}
    values: Iterator[tuple[str, Tensor]]
    if weights.source == "random":
        generator = torch.Generator().manual_seed(weights.seed)
        values = ((name, make_parameter(name, like, generator)) for name, like in expected.items())
    else:
        values = load_parameters(Path(weights.source), expected)
    place = _map_storage(expected, dtype, scratch) if scratch else lambda name, value: value.to(dtype)
    for name, value in values:
        part, _, inside = name.partition(".")
        owner, _, leaf = inside.rpartition(".")
        setattr(components[part].get_submodule(owner), leaf, nn.Parameter(place(name, value), requires_grad=False))


def _map_storage(expected: Mapping[str, Tensor], dtype: torch.dtype, folder: Path) -> Callable[[str, Tensor], Tensor]:
    """A function that puts a named tensor into its place of one mapped file."""
    offsets, total = {}, 0
    for name, like in expected.items():
        offsets[name] = total
        total += -(-like.numel() // _MAPPED_ALIGNMENT) * _MAPPED_ALIGNMENT
    path = folder / ".parameters"
    with path.open("wb") as file:  # a full disk is an error here; later it would be a signal that kills the process
        os.posix_fallocate(file.fileno(), 0, max(1, total * dtype.itemsize))
    flat = torch.from_file(str(path), shared=True, size=total, dtype=dtype)
    path.unlink()

    def place(name: str, value: Tensor) -> Tensor:
        return flat[offsets[name] : offsets[name] + value.numel()].view(value.shape).copy_(value)

    return place


def make_parameter(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A seeded value for one parameter, float32."""
    value = torch.empty(like.shape)
    leaf = name.rpartition(".")[2]
    if leaf == "logit_scale":
        return value.fill_(math.log(1 / 0.07))  # where CLIP's training starts
    mean, std = 0.0, 0.02
    if leaf in ("class_token", "query") or "embedding" in name.split(".")[-2] or leaf == "position_embedding":
        std = 0.1
    if value.dim() > 1 and "token_embedding" not in name and leaf != "position_embedding":
        std = value[0].numel() ** -0.5
    elif "norm" in name and leaf == "weight":
        mean = 1.0
    elif leaf == "bias":
        std = 0.02
    return value.normal_(mean, std, generator=generator).clamp_(mean - 2 * std, mean + 2 * std)


def load_parameters(path: Path, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a .safetensors file, checked against the model's names and shapes.

    Raises:
        WeightsError: missing or damaged file; missing, extra or mis-shaped tensors; another type; NaN or infinity.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"weights in '{path.suffix}' files are not read: they can hold code",
            where=str(path),
            allowed=".safetensors",
            fix="convert once: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')",
        )
    try:
        with safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), set(expected))
            for name, like in expected.items():
                yield name, _check_tensor(path, name, file.get_tensor(name), like)
    except FileNotFoundError:
        raise WeightsError("the weights file does not exist", where=str(path), fix="correct weights.source") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            "the weights file is truncated, or is not safetensors",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="copy or download it again, or convert it again",
        ) from None


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise WeightsError(
            f"the weights file lacks {len(missing)} of {len(expected)} tensors; the first is '{missing[0]}'",
            where=str(path),
            got=f"{len(found)} tensors; nearest to it: {name_nearest(missing[0], extra[:8])}" if extra else None,
            fix="use weights of this spec's sizes, named <component>.<parameter>",
        )
    if extra:
        raise WeightsError(
            f"the weights file has {len(extra)} tensors that the model does not; the first is '{extra[0]}'",
            where=str(path),
            got=f"{len(found)} tensors",
            allowed=f"{len(expected)} tensors",
            fix="remove them from the file, or correct the spec's sizes",
        )


def _check_tensor(path: Path, name: str, value: Tensor, like: Tensor) -> Tensor:
    where = f"tensor '{name}' of {path}"
    if value.shape != like.shape:
        raise WeightsError(
            f"'{name}' has the wrong shape",
            where=where,
            got=str(list(value.shape)),
            allowed=f"{list(like.shape)}, by the spec's sizes",
            fix="correct the spec's sizes, or use the weights that belong to it",
        )
    if value.dtype not in _FLOATS:
        raise WeightsError(
            f"'{name}' has the wrong type",
            where=where,
            got=str(value.dtype).removeprefix("torch."),
            allowed=", ".join(_FLOATS.values()),
            fix="store it as one of these; quantisation happens at export",
        )
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise WeightsError(
            f"'{name}' holds NaN or infinity",
            where=where,
            got=f"{bad} of {value.numel()} values are not finite",
            fix="train or convert again; these weights give no answers",
        )
    return value
