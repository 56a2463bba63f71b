"""One LSTM layer over a whole sequence: the eager meaning, the fake-tensor rule and the wrapper.

torch.export unrolls torch's own LSTM and so fixes the sequence's length; as one op it keeps any length. ONNX has this
operator, so there is no node of ours: `exporters/ops/lstm.py` translates to it.

Shape letters: T sequence, B batch, C input channels, H state channels, G = 4 H rows of the gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specs.ops._plain import is_opened

#: ONNX's order (input, output, forget, cell) as rows of torch's (input, forget, cell, output).
_TORCH_ORDER = (0, 2, 3, 1)


def _reorder(x_G: Tensor) -> Tensor:
    gates = x_G.chunk(4)
    return torch.cat([gates[index] for index in _TORCH_ORDER])


def _compute_lstm(x_TBC: Tensor, input_weight_GC: Tensor, state_weight_GH: Tensor, bias_2G: Tensor) -> Tensor:
    zeros_1BH = x_TBC.new_zeros(1, x_TBC.shape[1], state_weight_GH.shape[1])
    parameters = [_reorder(part) for part in (input_weight_GC, state_weight_GH, *bias_2G.chunk(2))]
    out_TBH, _, _ = torch.lstm(x_TBC, (zeros_1BH, zeros_1BH), parameters, True, 1, 0.0, False, False, batch_first=False)
    return out_TBH.contiguous()


@torch.library.custom_op("metagen::lstm", _compute_lstm, mutates_args=()).register_fake
def _lstm_fake(x_TBC: Tensor, input_weight_GC: Tensor, state_weight_GH: Tensor, bias_2G: Tensor) -> Tensor:
    return x_TBC.new_empty((*x_TBC.shape[:-1], state_weight_GH.shape[1]))


def lstm(x_TBC: Tensor, input_weight_GC: Tensor, state_weight_GH: Tensor, bias_2G: Tensor) -> Tensor:
    """A long short-term memory (Hochreiter and Schmidhuber 1997) that starts from zeros. [T, B, C] -> [T, B, H].

    Args:
        input_weight_GC, state_weight_GH: rows in ONNX's order: input, output, forget and cell gate, H rows each.
        bias_2G: of the input's product, then of the state's; both are added.
    """
    run = _compute_lstm if is_opened() else torch.ops.metagen.lstm
    result: Tensor = run(x_TBC, input_weight_GC, state_weight_GH, bias_2G)
    return result
