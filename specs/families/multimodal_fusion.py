"""Any set of modalities, some of which may be missing: an encoder each, and what fuses them. One graph a component.

    encoder   what its kind reads                      -> <name>_tokens [batch, tokens, width] (and <name>_lengths)
    fusion    all of these, presence [batch, modality] -> logits or embedding (and what was looked at)

The columns of `presence` are the encoders in the order in which the spec lists them. A host runs the encoders of what
is there and hands over anything in place of the rest: where `presence` is False nothing of it is seen, NaN included.

A tower that pools gives one token, any other gives all of its tokens; of `text.clip`, which always can pool, one where
it has a `projection_size`. Convolutions give a token for each place of their last feature map. Where texts and sounds
have lengths of their own, encoders take them beside the longest row that there can be, and say how many tokens count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast, final

from specs.components import (
    COMPONENTS,
    Activations,
    BertComponent,
    ClipTextComponent,
    Component,
    EncoderComponent,
    EncoderInput,
    MultimodalFusionComponent,
    PictureComponent,
    VisionTransformerComponent,
    Wav2Vec2Component,
    WhisperEncoderComponent,
)
from specs.components.fusion.multimodal import STRATEGIES, STRATEGY_OPTIONS, Stream, WeightsTensor
from specs.errors import SpecError, name_nearest
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids, make_model_graph
from specs.families.pictures import TOWERS, leave_raw, make_picture_graph
from specs.schema import Dim, Spec, TensorSpec

#: Beside every kind that is an EncoderComponent, registered ones included.
_ENCODERS = (*TOWERS, "text.clip", "text.siglip", "text.bert", "audio.whisper", "audio.wav2vec2")
FUSION_ROLE = "fusion"


@final
class MultimodalFusionFamily(Family):
    """Encoders of two modalities or more, under names of yours, and `fusion.multimodal`."""

    kind = "multimodal-fusion"
    title = "encoders and a fusion of all of them"
    roles: ClassVar = {
        FUSION_ROLE: ("fusion.multimodal",),
        "encoders": (*_ENCODERS, "video.frames", "sensor.points", "sensor.series", "a registered kind"),
    }
    dims: ClassVar = {"batch": BATCH}
    objectives = ("classification", "contrastive")

    def assign_roles(self, components: Components) -> Roles | None:
        """The fusion plays `fusion`; every other component plays the modality that it is named after."""
        fusions = [name for name, one in components.items() if isinstance(one, MultimodalFusionComponent)]
        encoders = [name for name in components if name not in fusions]
        if len(fusions) != 1 or not encoders:
            return None
        for name in encoders:
            if not _can_encode(components[name]):
                raise SpecError(
                    f"'{name}' is no encoder of a modality, and '{fusions[0]}' fuses those",
                    got=components[name].kind,
                    allowed=", ".join(_list_encoders()),
                    fix="change its kind; one of your own: --extension FILE.py, see docs/models.md",
                )
        return {FUSION_ROLE: fusions[0], **{f"modality:{name}": name for name in encoders}}

    def list_dims(self, components: Components) -> Mapping[str, Dim]:
        dims = dict(super().list_dims(components))
        for component in components.values():
            if isinstance(component, EncoderComponent):
                bounds = component.DIMS.items()
                dims |= {name: Dim(min=low, opt=opt, max=high) for name, (low, opt, high) in bounds}
        return dims

    def check(self, spec: Spec, roles: Roles) -> None:
        fusion = cast(MultimodalFusionComponent, spec.components[roles[FUSION_ROLE]])
        at = f"components.{roles[FUSION_ROLE]}"
        if spec.evaluation is not None:
            raise SpecError(
                "labelled data for a fusion of modalities is not taken", where="evaluation", fix="remove the key"
            )
        for name, component in spec.components.items():
            if isinstance(component, Wav2Vec2Component) and component.num_samples is None:
                raise SpecError(
                    f"'{name}' hears sounds of any length, and a fusion needs the longest",
                    where=f"components.{name}",
                    fix=f"add num_samples: 4 seconds are {4 * component.sample_rate}",
                )
            if isinstance(component, PictureComponent) and component.num_classes is not None:
                raise SpecError(
                    f"'{name}' ends in classes, and a fusion needs features",
                    where=f"components.{name}.num_classes",
                    fix=f"remove the key; the classes are {roles[FUSION_ROLE]}.num_classes",
                )
        streams = list_streams(spec.components, roles)
        if len(streams) < 2:
            raise SpecError(
                "there is one modality, and nothing to fuse it with",
                where="components",
                got=streams[0].name,
                fix="add an encoder of another modality",
            )
        _check_strategy(fusion, at)
        _check_layers(fusion, at)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        return tuple(
            _make_fusion_graph(name, components, roles)
            if name == roles[FUSION_ROLE]
            else _make_encoder_graph(name, component)
            for name, component in components.items()
        )

    def count_parameters(self, components: Components, roles: Roles) -> dict[str, int]:
        return {
            name: one.measure(list_streams(components, roles)).parameters
            if isinstance(one, MultimodalFusionComponent)
            else one.count_parameters()
            for name, one in components.items()
        }

    def count_macs(self, components: Components, roles: Roles, tokens: int) -> dict[str, int]:
        return {
            name: one.measure(list_streams(components, roles)).macs
            if isinstance(one, MultimodalFusionComponent)
            else one.count_macs(one.context_length if isinstance(one, BertComponent) else tokens)
            for name, one in components.items()
        }

    def count_activations(
        self, components: Components, roles: Roles, sizes: Mapping[str, int]
    ) -> dict[str, Activations]:
        streams, batch = list_streams(components, roles), sizes["batch"]
        given = sum(stream.tokens * stream.width for stream in streams)
        return {
            name: Activations(layer=batch * one.measure(streams).peak, interface=batch * given)
            if isinstance(one, MultimodalFusionComponent)
            else one.count_activations({**sizes, **_fix_sizes(one)})
            for name, one in components.items()
        }


def _fix_sizes(component: Component) -> dict[str, int]:
    """What is a dim where such an encoder stands alone, and one size in a fusion."""
    if isinstance(component, BertComponent):
        return {"tokens": component.context_length}
    return {"samples": component.num_samples or 0} if isinstance(component, Wav2Vec2Component) else {}


def _can_encode(component: Component) -> bool:
    return isinstance(component, EncoderComponent) or component.kind in _ENCODERS


def _list_encoders() -> tuple[str, ...]:
    """Every kind that can stand for a modality, registered ones included."""
    return (*_ENCODERS, *(kind for kind, one in COMPONENTS.items() if issubclass(one, EncoderComponent)))


def list_streams(components: Components, roles: Roles) -> tuple[Stream, ...]:
    """What the fusion gets, in the order of `presence`'s columns."""
    return tuple(_make_stream(name, components[name]) for role, name in roles.items() if role != FUSION_ROLE)


def _make_stream(name: str, component: Component) -> Stream:
    if isinstance(component, EncoderComponent):
        return Stream(name, component.output_tokens, component.feature_size)
    if isinstance(component, VisionTransformerComponent):
        if component.resolved_pooling == "none":
            return Stream(name, component.num_patches, component.hidden_size)
        return Stream(name, 1, component.feature_size)
    if isinstance(component, PictureComponent):
        width, height, columns = component.features["feature_map"]
        return Stream(name, height * columns, width)
    if isinstance(component, BertComponent):
        if component.pooling != "none":
            return Stream(name, 1, component.feature_size)
        return Stream(name, component.context_length, component.hidden_size, has_lengths=True)
    if isinstance(component, Wav2Vec2Component):
        frames = component.list_frame_counts(component.num_samples or component.smallest_input)[-1]
        return Stream(name, frames, component.hidden_size, has_lengths=True)
    if isinstance(component, ClipTextComponent):
        if component.head_size is not None:
            return Stream(name, 1, component.head_size)
        return Stream(name, component.context_length, component.hidden_size, has_lengths=True)
    assert isinstance(component, WhisperEncoderComponent)
    return Stream(name, component.source_positions, component.hidden_size)


def _check_strategy(fusion: MultimodalFusionComponent, at: str) -> None:
    if fusion.strategy not in STRATEGIES:
        raise SpecError(
            f"there is no fusion strategy '{fusion.strategy}'",
            where=f"{at}.strategy",
            allowed=name_nearest(fusion.strategy, STRATEGIES),
            fix="use one of these; one of your own: --extension FILE.py, see docs/models.md",
        )
    strategy = STRATEGIES[fusion.strategy]
    for key in STRATEGY_OPTIONS:
        default = type(fusion).model_fields[key].get_default(call_default_factory=True)
        is_given = getattr(fusion, key) != default
        if is_given and key not in strategy.options and not strategy.is_own:
            users = [name for name, one in STRATEGIES.items() if key in one.options]
            raise SpecError(
                f"the strategy '{fusion.strategy}' has no {key}",
                where=f"{at}.{key}",
                got=str(getattr(fusion, key)),
                allowed=f"{key} belongs to {', '.join(users) or 'registered strategies'}",
                fix="remove the key, or change the strategy",
            )
        if not is_given and key in strategy.needed:
            raise SpecError(
                f"the strategy '{fusion.strategy}' needs {key}", where=f"{at}.strategy", fix=f"add {key} to {at}"
            )
    if fusion.export_weights and strategy.list_weights is None:
        makers = [name for name, one in STRATEGIES.items() if one.list_weights]
        raise SpecError(
            f"the strategy '{fusion.strategy}' makes no weights that could be exported",
            where=f"{at}.export_weights",
            allowed=f"weights of {', '.join(makers)}",
            fix="remove export_weights, or change the strategy",
        )


def _check_layers(fusion: MultimodalFusionComponent, at: str) -> None:
    given, layers = fusion.exchange_layers, fusion.num_layers or 0
    if given is None:
        return
    if not given or list(given) != sorted(set(given)) or given[-1] > layers:
        raise SpecError(
            "exchange_layers must be layers of the fusion, each once, in rising order",
            where=f"{at}.exchange_layers",
            got=str(list(given)),
            allowed=f"some of 1 to {layers}",
            fix="correct exchange_layers, or num_layers",
        )


def _make_encoder_graph(name: str, component: Component) -> GraphSpec:
    stream = _make_stream(name, component)
    made = list_stream_tensors(stream)
    if isinstance(component, EncoderComponent):
        graph = make_model_graph(name, tuple(_make_tensor(tensor) for tensor in component.list_inputs()), made)
    elif isinstance(component, PictureComponent):
        graph = make_picture_graph(name, component, *made)
    elif isinstance(component, ClipTextComponent):
        ids = make_ids("token_ids", "batch", component.context_length, vocab_size=component.vocab_size)
        graph = make_model_graph(name, (ids,), made)
    elif isinstance(component, BertComponent):
        ids = make_ids("token_ids", "batch", component.context_length, vocab_size=component.vocab_size)
        graph = make_model_graph(name, (ids, _make_lengths(component.context_length)), made)
    elif isinstance(component, Wav2Vec2Component):
        samples = component.num_samples or component.smallest_input
        graph = make_model_graph(name, (make_float("samples", "batch", samples), _make_lengths(samples)), made)
    else:
        audio = cast(WhisperEncoderComponent, component)
        graph = make_model_graph(name, (make_float("samples", "batch", audio.num_samples),), made)
    return leave_raw(graph)


def _make_lengths(longest: int) -> TensorSpec:
    """How much of each row is its own."""
    return TensorSpec(name="lengths", dtype="int64", shape=("batch",), low=longest // 2 + 1, high=longest + 1)


def _make_tensor(tensor: EncoderInput) -> TensorSpec:
    shape = ("batch", *tensor.shape)
    return TensorSpec(
        name=tensor.name, dtype=tensor.dtype, shape=shape, low=tensor.low, high=tensor.high, counts=tensor.counts
    )


def list_stream_tensors(stream: Stream) -> tuple[TensorSpec, ...]:
    """What an encoder hands to the fusion."""
    tokens = make_float(f"{stream.name}_tokens", "batch", stream.tokens, stream.width)
    if not stream.has_lengths:
        return (tokens,)
    lengths = TensorSpec(name=f"{stream.name}_lengths", dtype="int64", shape=("batch",), low=1, high=stream.tokens + 1)
    return tokens, lengths


def _make_fusion_graph(name: str, components: Components, roles: Roles) -> GraphSpec:
    config, streams = cast(MultimodalFusionComponent, components[name]), list_streams(components, roles)
    inputs = [tensor for stream in streams for tensor in list_stream_tensors(stream)]
    inputs.append(TensorSpec(name="presence", dtype="bool", shape=("batch", len(streams)), low=0, high=2))
    answer = "logits" if config.num_classes else "embedding"
    outputs = [make_float(answer, "batch", config.num_classes or config.hidden_size)]
    exported = list_exported(config, streams)
    outputs += [make_float(tensor.name, "batch", *tensor.shape) for tensor in exported]
    graph = make_model_graph(name, tuple(inputs), tuple(outputs))
    reason = "its scores are exported as weights, and a softmax makes factors of differences"
    for pattern in dict.fromkeys(pattern for tensor in exported for pattern in tensor.exact):
        graph = graph.keep(pattern or name, reason)
    modules = tuple(dict.fromkeys(pattern for tensor in exported for pattern in tensor.modules))
    return graph.leave(*modules, reason=reason)


def list_exported(config: MultimodalFusionComponent, streams: Sequence[Stream]) -> tuple[WeightsTensor, ...]:
    """The extra outputs that the spec asks for."""
    list_weights = STRATEGIES[config.strategy].list_weights
    return list_weights(config, streams) if config.export_weights and list_weights else ()
