"""What layers cost, against torch's modules: their parameters, and the products that torch counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from specs.components.costs import (
    Cost,
    cost_attention,
    cost_conv,
    cost_conv1d,
    cost_conv_norm,
    cost_linear,
    cost_norm,
    cost_resnet,
)


def measure(module: nn.Module, run: Callable[[], object]) -> tuple[int, int]:
    """Parameters and buffers that are data, and multiply-accumulates."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    data = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.ndim)]
    return sum(tensor.numel() for tensor in data), counter.get_total_flops() // 2


class Resnet(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(1, inputs), nn.GroupNorm(1, outputs)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.condition = nn.Linear(condition, outputs) if condition else None
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.convs[0](self.norms[0](x))
        if self.condition is not None:
            y = y + self.condition(condition)[:, :, None, None]
        out: Tensor = self.shortcut(x) + self.convs[1](self.norms[1](y))
        return out


X = torch.zeros(1, 6, 5, 7)

CASES: dict[str, tuple[nn.Module, Callable[[nn.Module], object], Cost]] = {
    "conv": (nn.Conv2d(6, 4, 3, padding=1), lambda m: m(X), cost_conv(6, 4, 3, 35)),
    "conv norm": (
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4).eval()),
        lambda m: m(X),
        cost_conv_norm(6, 4, 3, 35),
    ),
    "grouped conv norm": (
        nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4).eval()),
        lambda m: m(X),
        cost_conv_norm(6, 4, 3, 35, groups=2),
    ),
    "conv over time": (nn.Conv1d(6, 4, 5, padding=2), lambda m: m(X[:, :, 0]), cost_conv1d(6, 4, 5, 7)),
    "grouped, without bias": (
        nn.Conv1d(6, 4, 5, padding=2, groups=2, bias=False),
        lambda m: m(X[:, :, 0]),
        cost_conv1d(6, 4, 5, 7, groups=2, bias=False),
    ),
    "linear": (nn.Linear(7, 3), lambda m: m(X[0, :, 0]), cost_linear(7, 3, 6)),
    "linear without bias": (nn.Linear(7, 3, bias=False), lambda m: m(X[0, :1, 0]), cost_linear(7, 3, bias=False)),
    "norm": (nn.LayerNorm(7), lambda m: m(X), cost_norm(7)),
    "resnet": (Resnet(6, 6, 0), lambda m: m(X, torch.zeros(1, 1)), cost_resnet(6, 6, 0, 35)),
    "resnet with all": (Resnet(6, 4, 9), lambda m: m(X, torch.zeros(1, 9)), cost_resnet(6, 4, 9, 35)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_cost_what_torch_counts(name: str) -> None:
    module, run, cost = CASES[name]
    assert (cost.parameters, cost.macs) == measure(module, lambda: run(module))


@pytest.mark.parametrize("bias", [True, False])
def test_attention_costs_its_projections_and_its_scores(bias: bool) -> None:
    width, context, places, keys, heads = 8, 12, 5, 9, 2
    q, k, v = (nn.Linear(size, width, bias=bias) for size in (width, context, context))
    out = nn.Linear(width, width)

    def attend() -> None:
        x, y = torch.zeros(places, width), torch.zeros(keys, context)
        q_HTD, k_HSD, v_HSD = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q(x), k(y), v(y)))
        shares_HTS = (q_HTD @ k_HSD.mT).softmax(-1)
        out((shares_HTS @ v_HSD).transpose(0, 1).flatten(1))

    cost = cost_attention(width, context, places, keys, heads, bias=bias)
    assert (cost.parameters, cost.macs) == measure(nn.ModuleList([q, k, v, out]), attend)


def test_what_is_held_is_what_goes_in_and_comes_out() -> None:
    assert cost_conv(6, 4, 3, 35).peak == cost_conv_norm(6, 4, 3, 35).peak == (6 + 4) * 35
    assert cost_conv1d(6, 4, 5, 7).peak == (6 + 4) * 7
    assert cost_linear(7, 3, 6).peak == (7 + 3) * 6
    assert cost_resnet(6, 4, 9, 35).peak == (6 + 2 * 4) * 35, "the shortcut's input waits for its end"
    # scores of every head, and queries, keys or values, what is attended to and the result beside them
    assert cost_attention(8, 8, 100, 50, 2, bias=True).peak == 2 * 100 * 50 + 4 * 8 * 100


def test_costs_add_up_and_the_widest_place_counts() -> None:
    assert Cost(1, 10, 100) + Cost(2, 20, 50) == Cost(3, 30, 100)
    assert Cost(1, 10, 50) + Cost(2, 20, 100) == Cost(3, 30, 100)
