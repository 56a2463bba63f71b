"""Typed fields out of the manifest's free-form `pipeline` object, with the field's path in every error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from specs.errors import BundleError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.graph_session import GraphSession

_Value = TypeVar("_Value")


def take_field(
    config: Mapping[str, Any],
    key: str,
    kind: type[_Value],
    default: _Value | None = None,
    *,
    at: str = "pipeline",
    least: int = 1,
) -> _Value:
    """`config[key]`; BundleError when it is missing without a default, of another type, or an integer below `least`."""
    value = config.get(key, default)
    if value is None:
        raise BundleError(f"manifest: {at}.{key} is missing", fix="export the bundle again")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(
            f"manifest: {at}.{key} must be {kind.__name__}, got {type(value).__name__}", fix="export the bundle again"
        )
    if isinstance(value, int) and not isinstance(value, bool) and value < least:
        raise BundleError(f"manifest: {at}.{key} must be at least {least}, got {value}", fix="export the bundle again")
    return value


def take_strings(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings, empty when the key is missing."""
    values: list[Any] = take_field(config, key, list, [])
    if not all(isinstance(value, str) for value in values):
        raise BundleError(f"manifest: pipeline.{key} must be a list of strings", fix="export the bundle again")
    return tuple(values)


def take_graph(
    config: Mapping[str, Any],
    key: str,
    graphs: Mapping[str, GraphSession],
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> GraphSession:
    """The graph that `config[key]` names, which must have exactly `inputs` (when given) and at least `outputs`."""
    name = take_field(config, key, str)
    if name not in graphs:
        raise BundleError(f"manifest: pipeline.{key} names no graph '{name}'", allowed=name_nearest(name, graphs))
    graph = graphs[name].graph
    got_inputs, got_outputs = [t.name for t in graph.inputs], [t.name for t in graph.outputs]
    if (inputs and set(got_inputs) != set(inputs)) or not set(outputs) <= set(got_outputs):
        raise BundleError(
            f"manifest: graph '{name}' cannot be pipeline.{key}",
            got=f"{', '.join(got_inputs)} -> {', '.join(got_outputs)}",
            allowed=f"{', '.join(inputs) or 'any'} -> {', '.join(outputs) or 'any'}",
            fix="export the bundle again",
        )
    return graphs[name]
