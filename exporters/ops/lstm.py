"""torch.ops.metagen.lstm -> ONNX's own LSTM: every target has it, so the graph holds no custom node.

x [T, B, C], W [1, 4 H, C], R [1, 4 H, H], B [1, 8 H]  --LSTM-->  y [T, 1, B, H]  --Squeeze-->  [T, B, H]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from exporters.ops.opset import standard_opset
from specs import ops as _eager  # noqa: F401  registers torch.ops.metagen


def _translate(x: Any, input_weight: Any, state_weight: Any, bias: Any) -> Any:
    """One direction, states from zero; the weights' rows are in ONNX's order already."""
    opset = standard_opset()
    first, direction = opset.Constant(value_ints=[0]), opset.Constant(value_ints=[1])
    weights = (opset.Unsqueeze(weight, first) for weight in (input_weight, state_weight, bias))
    out, _, _ = opset.LSTM(x, *weights, hidden_size=state_weight.shape[1])
    return opset.Squeeze(out, direction)


#: torch op -> translation into a standard operator.
STANDARD_OPS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.metagen.lstm.default: _translate}
