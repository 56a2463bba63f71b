"""How each parameter of our modules is made of a checkpoint's tensors; `source.py` hands them over.

    `<component>.<parameter>`  <--Recipe--  one tensor as it is (stays mapped), or several and a function of them

A recipe's function runs on meta tensors first: so every shape is checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Make = Callable[..., "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One parameter: the checkpoint's tensors it is made of, and how; None where there is one, taken as it is."""

    sources: tuple[str, ...]
    make: Make | None = None


def take(name: str) -> Recipe:
    """The tensor as it is."""
    return Recipe(sources=(name,))


def transpose(name: str) -> Recipe:
    """A matrix that the checkpoint stores the other way round (GPT-2's Conv1D)."""
    return Recipe(sources=(name,), make=lambda tensor: tensor.t())


def stack(*names: str) -> Recipe:
    """Several tensors under one another along the first axis: query, key and value of one Linear."""

    def concatenate(*tensors: Tensor) -> Tensor:
        import torch

        return torch.cat(tensors)

    return Recipe(sources=names, make=concatenate)


def reshape(name: str, *shape: int) -> Recipe:
    """The same values in another shape: a 1 by 1 convolution as a Linear, a position table without its batch axis."""
    return Recipe(sources=(name,), make=lambda tensor: tensor.reshape(shape))


def compute(make: Make, *names: str) -> Recipe:
    """Anything else; `make` gets the tensors in the order of `names`, must work on meta tensors, and keeps the type."""
    return Recipe(sources=names, make=make)


def take_module(ours: str, theirs: str, *leaves: str) -> dict[str, Recipe]:
    """Parameters that both sides call alike: `take_module("a.norm", "b.ln", "weight", "bias")`."""
    return {f"{ours}.{leaf}": take(f"{theirs}.{leaf}") for leaf in leaves}


def take_linear(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Recipe]:
    """Weight, and bias where there is one."""
    return take_module(ours, theirs, "weight", *(("bias",) if bias else ()))


def stack_linear(ours: str, theirs: tuple[str, ...], *, bias: bool = True) -> dict[str, Recipe]:
    """Several Linears as one."""
    return {
        f"{ours}.{leaf}": stack(*(f"{one}.{leaf}" for one in theirs))
        for leaf in ("weight", *(("bias",) if bias else ()))
    }
