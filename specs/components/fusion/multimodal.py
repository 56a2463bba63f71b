"""What fuses any set of modalities, some of which may be missing; one strategy of several.

    tokens of each modality -> Linear -> strategy -> norm -> [Linear] = logits, or the embedding

STRATEGIES is the table of what there is, without torch; `specs/models/fusion/multimodal.py` has the modules, and a
user's own strategy is one more line in both (`register_strategy` of `metagen_deploy.api`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_linear, cost_norm


class Stream(NamedTuple):
    """What a fusion gets of one modality: `name`_tokens [batch, tokens, width], and their number where it varies."""

    name: str
    tokens: int
    width: int
    has_lengths: bool = False


class WeightsTensor(NamedTuple):
    """An extra output: what was looked at, [batch, *shape].

    Args:
        rows: (whose, how many) of the second last axis, in order; () where there is one row.
        columns: the same of the last axis.
        modules: patterns of the paths of modules that an int8 graph leaves in its high precision for the weights' sake:
            what is added to a score multiplies its weight.
        exact: patterns of what a float16 graph keeps in float32 for the same reason; "" is the fusion's own nodes.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[tuple[str, int], ...]
    columns: tuple[tuple[str, int], ...]
    modules: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()


class MultimodalFusionComponent(Component):
    """Tokens of every modality -> logits, or an embedding; a modality that is missing has no influence.

        early       tokens of all modalities and a class token, one after the other, through shared layers
        middle      layers of each modality's own; after `exchange_layers` each looks at the tokens of the others
        late        the means of each modality's tokens, side by side, through two Linears
        attention   the weighted sum of these means (softmax over those that are present)

    or the name of a strategy that was registered from Python.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "strategy", "export_weights"})

    kind: Literal["fusion.multimodal"]
    strategy: str = Field(description="early, middle, late, attention, or one that is registered from Python")
    hidden_size: Size = Field(description="common width of all modalities")
    num_classes: Size | None = Field(default=None, description="width of the logits; absent: an embedding")
    num_layers: LayerCount | None = Field(default=None, description="of early and middle, which need it")
    num_heads: Size | None = Field(default=None, description="of early and middle, which need it")
    mlp_size: Size | None = Field(default=None, description="width of the layers' MLP; 4 * hidden_size when absent")
    exchange_layers: tuple[Size, ...] | None = Field(
        default=None, description="of middle: layers after which modalities look at each other, from 1; absent: all"
    )
    temperature: Positive = Field(
        default=1.0, description="of the softmax that looks across modalities; above 1: softer"
    )
    export_weights: bool = Field(default=False, description="what was looked at becomes outputs of the graph")
    options: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="of a registered strategy, which knows what they mean"
    )
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_heads(self) -> MultimodalFusionComponent:
        if self.num_heads:
            check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        return self

    @property
    def mlp_width(self) -> int:
        return self.mlp_size or 4 * self.hidden_size

    @property
    def exchanges(self) -> tuple[int, ...]:
        """The layers after which modalities look at each other, from 1."""
        return tuple(range(1, (self.num_layers or 0) + 1)) if self.exchange_layers is None else self.exchange_layers

    def count_parameters(self) -> int:
        raise NotImplementedError("a fusion's parameters depend on what it joins: see specs.families.multimodal_fusion")

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        raise NotImplementedError("a fusion's memory depends on what it joins: see specs.families.multimodal_fusion")

    def measure(self, streams: Sequence[Stream]) -> Cost:
        """All of it: a projection and a vector each, the strategy, the norm and the head."""
        width = self.hidden_size
        cost = cost_norm(width) + Cost(len(streams) * width)
        for stream in streams:
            cost += cost_linear(stream.width, width, stream.tokens)
        cost += STRATEGIES[self.strategy].measure(self, streams)
        return cost + cost_linear(width, self.num_classes) if self.num_classes else cost


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One line of STRATEGIES.

    Args:
        options: keys of the component that it uses beside those that all use.
        needed: those of them that have to be given.
        measure: parameters, multiply-accumulates of a sample and peak of what the module has, apart from projections.
        list_weights: the extra outputs of `export_weights`; None where it has none.
        is_own: registered by a user.
    """

    options: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    measure: Callable[[MultimodalFusionComponent, Sequence[Stream]], Cost]
    list_weights: Callable[[MultimodalFusionComponent, Sequence[Stream]], tuple[WeightsTensor, ...]] | None = None
    is_own: bool = False


#: Keys of the component that not every strategy uses.
STRATEGY_OPTIONS = ("num_layers", "num_heads", "mlp_size", "exchange_layers", "temperature", "options")


def _measure_layer(config: MultimodalFusionComponent, tokens: int) -> Cost:
    width, heads = config.hidden_size, config.num_heads or 1
    cost = cost_norm(width) + cost_norm(width) + cost_attention(width, width, tokens, tokens, heads, bias=True)
    return cost + cost_linear(width, config.mlp_width, tokens) + cost_linear(config.mlp_width, width, tokens)


def _measure_early(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> Cost:
    tokens = 1 + sum(stream.tokens for stream in streams)
    cost = Cost(config.hidden_size)
    for _ in range(config.num_layers or 0):
        cost += _measure_layer(config, tokens)
    return cost


def _measure_middle(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> Cost:
    width, heads, total = config.hidden_size, config.num_heads or 1, sum(stream.tokens for stream in streams)
    cost = Cost()
    for stream in streams:
        for number in range(1, (config.num_layers or 0) + 1):
            cost += _measure_layer(config, stream.tokens)
            if number in config.exchanges:
                cost += cost_norm(width) + cost_norm(width)
                cost += cost_attention(width, width, stream.tokens, total - stream.tokens, heads, bias=True)
    return cost


def _measure_late(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> Cost:
    width = config.hidden_size
    return cost_linear(len(streams) * width, width) + cost_linear(width, width)


def _measure_attention(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> Cost:
    return Cost(config.hidden_size, 2 * len(streams) * config.hidden_size, len(streams) * config.hidden_size)


def _count_tokens(streams: Sequence[Stream]) -> tuple[tuple[str, int], ...]:
    return tuple((stream.name, stream.tokens) for stream in streams)


#: What is most of the error of an exported weight, and less than half of the work: int8 for TensorRT left the shipped
#: spec's weights beyond their limit with nothing left out, and more so at low temperatures.
_SCORES_OF_LAYERS = ("projections.*", "strategy.layers.*.attention.query", "strategy.layers.*.attention.key_value")
_SCORES_OF_EXCHANGES = (
    "projections.*",
    "strategy.exchanges.*.attention.query",
    "strategy.exchanges.*.attention.key_value",
    "strategy.layers.*.attention.out",
)

#: What a weight of float16 hangs on. No node alone is the error: of the shipped spec at full size, whose weights reach
#: 50 times their rms, each group of roundings before the scores moves one by 0.01 to 0.03 of it (scores and softmax
#: 0.019, norms 0.027, attention 0.013, projections 0.011), and all of them by 0.051, limit 0.03. With these in float32
#: it is 0.016; the products of layers and exchanges, 83 % of the work, stay half.
_EXACT_LAYERS = ("", "projections.*", "strategy", "*norm", "strategy.layers.*.attention")
_EXACT_EXCHANGES = (
    *_EXACT_LAYERS,
    "strategy.layers.*[0-9]",
    "strategy.exchanges.*[0-9]",
    "strategy.exchanges.*.attention",
)


def _list_early_weights(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> tuple[WeightsTensor, ...]:
    """Of the last layer."""
    axis = (("class", 1), *_count_tokens(streams))
    tokens = sum(count for _, count in axis)
    return (
        WeightsTensor("weights", (config.num_heads or 1, tokens, tokens), axis, axis, _SCORES_OF_LAYERS, _EXACT_LAYERS),
    )


def _list_middle_weights(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> tuple[WeightsTensor, ...]:
    """Of the last exchange, one tensor a modality."""
    found = []
    for stream in streams:
        others = _count_tokens([other for other in streams if other != stream])
        shape = (config.num_heads or 1, stream.tokens, sum(count for _, count in others))
        rows = ((stream.name, stream.tokens),)
        found.append(
            WeightsTensor(f"{stream.name}_weights", shape, rows, others, _SCORES_OF_EXCHANGES, _EXACT_EXCHANGES)
        )
    return tuple(found)


def _list_attention_weights(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> tuple[WeightsTensor, ...]:
    """A share of each modality."""
    return (WeightsTensor("weights", (len(streams),), (), tuple((stream.name, 1) for stream in streams)),)


_LAYERED = frozenset({"num_layers", "num_heads"})

STRATEGIES: dict[str, Strategy] = {
    "early": Strategy(
        options=_LAYERED | {"mlp_size", "temperature"},
        needed=_LAYERED,
        measure=_measure_early,
        list_weights=_list_early_weights,
    ),
    "middle": Strategy(
        options=_LAYERED | {"mlp_size", "temperature", "exchange_layers"},
        needed=_LAYERED,
        measure=_measure_middle,
        list_weights=_list_middle_weights,
    ),
    "late": Strategy(measure=_measure_late),
    "attention": Strategy(
        options=frozenset({"temperature"}), measure=_measure_attention, list_weights=_list_attention_weights
    ),
}
