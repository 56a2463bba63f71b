"""What text and picture towers are made of: layers one by one, what is scaled, where a residual goes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import Activation, ClipTextComponent, MobileVitComponent
from specs.models.layers import Layer, activate
from specs.models.text.clip import ClipText, ClipTextEmbedding
from specs.models.vision.mobilevit import InvertedResidual
from specs.parameters.fill import fill_parameters
from specs.schema import WeightsSpec

LAYERS = 3
IDS = torch.tensor([[3, 9, 9, 1, 2, 0], [5, 4, 11, 7, 8, 6]])


def make_clip(kind: str, **options: int | None) -> ClipText:
    sizes = {"hidden_size": 8, "num_layers": LAYERS, "num_heads": 2, "vocab_size": 12, "context_length": 6}
    tower = ClipText(ClipTextComponent.model_validate({"kind": kind, **sizes, **options}))
    fill_parameters({"tower": tower}, WeightsSpec(seed=3))
    return tower.eval()


def list_states(tower: ClipText) -> list[Tensor]:
    """As transformers' `hidden_states`: what the first layer reads, and what each leaves."""
    states = [tower.token_embedding(IDS) + tower.position_embedding]
    for layer in tower.layers:
        states.append(layer(states[-1]))
    return states


@pytest.mark.parametrize("kind", ["text.clip", "text.siglip"])
def test_a_layer_is_counted_from_either_end(kind: str) -> None:
    tower = make_clip(kind)
    states = list_states(tower)
    assert len(states) == LAYERS + 1
    for layer in range(-LAYERS - 1, LAYERS + 1):
        torch.testing.assert_close(tower.forward_features(IDS, layer=layer), states[layer], rtol=0, atol=0)
    torch.testing.assert_close(tower.forward_features(IDS), states[-1], rtol=0, atol=0)
    for layer in (-LAYERS - 2, LAYERS + 1):
        with pytest.raises(AssertionError):
            tower.forward_features(IDS, layer=layer)


@pytest.mark.parametrize(
    ("kind", "options", "places"),
    [
        ("text.clip", {}, [1, 2]),  # the first of the largest ids
        ("text.clip", {"end_token": 1}, [3, 0]),  # a text without it has its first token
        ("text.clip", {"end_token": 9, "projection_size": 5}, [1, 0]),
        ("text.siglip", {}, [5, 5]),
    ],
)
def test_the_features_are_those_of_one_token(kind: str, options: dict[str, int], places: list[int]) -> None:
    tower = make_clip(kind, **options)
    normed = tower.output_norm(list_states(tower)[-1])
    chosen = normed[torch.arange(2), places]
    expected = chosen if tower.projection is None else tower.projection(chosen)
    torch.testing.assert_close(tower(IDS), expected)
    pooled, tokens = ClipTextEmbedding(tower)(IDS)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(tokens, normed)


def test_each_sum_of_a_layer_is_scaled_by_its_own_scale() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_heads": 2, "mlp_size": 12, "eps": 1e-5}
    layer = Layer(**sizes, activation="gelu", causal=False, layer_scale=True).eval()  # type: ignore[arg-type]
    plain = Layer(**sizes, activation="gelu", causal=False).eval()  # type: ignore[arg-type]
    assert plain.attention_scale is None and plain.mlp_scale is None
    x = torch.randn(2, 5, 8)
    assert layer.attention_scale is not None and layer.mlp_scale is not None
    with torch.no_grad():
        layer.attention_scale.copy_(torch.linspace(-1, 2, 8))
        layer.mlp_scale.copy_(torch.linspace(0.5, 3, 8))
        half = x + layer.attention(layer.attention_norm(x)) * layer.attention_scale
        torch.testing.assert_close(layer(x), half + layer.mlp(layer.mlp_norm(half)) * layer.mlp_scale)
        half = x + plain.attention(plain.attention_norm(x))
        torch.testing.assert_close(plain(x), half + plain.mlp(plain.mlp_norm(half)))


def test_activations_are_what_they_are_called() -> None:
    x = torch.linspace(-6, 6, 97, dtype=torch.float64)
    expected = {
        "relu": x.clamp(min=0),
        "silu": x / (1 + (-x).exp()),
        "tanh": 1 - 2 / ((2 * x).exp() + 1),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
        "gelu_tanh": x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        "quick_gelu": x / (1 + (-1.702 * x).exp()),
    }
    assert set(expected) == set(get_args(Activation))
    for name, values in expected.items():
        torch.testing.assert_close(activate(x, name), values, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "has_residual"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 16, 1, False), (1, 8, 1, False), (8, 16, 2, False)],
)
def test_a_residual_goes_where_nothing_changes_its_shape(
    inputs: int, outputs: int, stride: int, has_residual: bool
) -> None:
    config = MobileVitComponent(kind="vision.mobilevit", image_size=16, num_classes=2)  # type: ignore[call-arg]
    block = InvertedResidual(config, inputs, outputs, stride=stride)
    fill_parameters({"block": block}, WeightsSpec(seed=1))
    x = torch.randn(2, inputs, 6, 6)
    plain = nn.Sequential(block.expand, block.mix, block.reduce)(x)
    size = 6 // stride
    assert plain.shape == (2, outputs, size, size)
    torch.testing.assert_close(block(x), x + plain if has_residual else plain)
    assert block.mix.conv.groups == config.expand(inputs) == block.mix.conv.in_channels
    torch.testing.assert_close(
        block.mix.conv(torch.ones(1, config.expand(inputs), 6, 6)),
        functional.conv2d(
            torch.ones(1, config.expand(inputs), 6, 6),
            block.mix.conv.weight,
            stride=stride,
            padding=1,
            groups=config.expand(inputs),
        ),
    )
