"""What an encoder of a modality promises to a fusion: its inputs, and tokens of one width. Yours is one of these.

A subclass says sizes, without torch; a module that is registered for its kind does the work (`specs/models/sensor.py`
has two, `docs/models.md` shows one of a user's). Whatever has to happen to raw values happens in that module, so that
it is part of the graph: an app hands over what its sensor says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from specs.components.base import Activations, Component

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: kind -> counts the parameters of the registered module: for components of a user that do not count themselves.
PARAMETER_COUNTERS: dict[str, Callable[[Any], int]] = {}


class EncoderInput(NamedTuple):
    """One tensor that an encoder reads.

    Args:
        shape: of one sample, without the batch: sizes, and names of dynamic dims.
        low, high: example values lie in [low, high).
        counts: the dim of which this tensor says how many places are valid in each row (int64, shape ()).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "int64", "uint8", "bool"] = "float32"
    low: float = -1.0
    high: float = 1.0
    counts: str | None = None


class EncoderComponent(Component):
    """An encoder of one modality: `list_inputs` -> tokens [batch, output_tokens, feature_size]."""

    #: name -> min, opt, max of each dynamic dim that `list_inputs` names; a spec's `dims` may change them.
    DIMS: ClassVar[Mapping[str, tuple[int, int, int]]] = {}

    def list_inputs(self) -> tuple[EncoderInput, ...]:
        """What the graph reads, in the order of the module's `forward`; the first one is what a user's file holds."""
        raise NotImplementedError

    @property
    def output_tokens(self) -> int:
        """Tokens that the module makes of one sample."""
        raise NotImplementedError

    @property
    def feature_size(self) -> int:
        """Width of a token."""
        raise NotImplementedError

    def draw_example(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
        """A realistic value of input `name`, batch included; evenly distributed unless a subclass knows better."""
        (tensor,) = (tensor for tensor in self.list_inputs() if tensor.name == name)
        if tensor.dtype == "float32":
            return random.uniform(tensor.low, tensor.high, shape)
        return random.integers(int(tensor.low), int(tensor.high), shape)

    def count_parameters(self) -> int:
        return PARAMETER_COUNTERS[self.kind](self)

    def count_macs(self, tokens: int) -> int:
        """Each weight once for every token, where a subclass does not know better."""
        return self.count_parameters() * self.output_tokens

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch = sizes["batch"]
        given = sum(
            math.prod(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            for tensor in self.list_inputs()
        )
        made = self.output_tokens * self.feature_size
        return Activations(layer=batch * (given + made), interface=batch * (given + made))
