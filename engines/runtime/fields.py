"""Typed fields out of the manifest's free-form `pipeline` object, with the field's path in every error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
    most: int = 1 << 62,
) -> _Value:
    """`config[key]`; BundleError when it is missing without a default, of another type, or an integer out of range.

    A whole number is taken for a float; a float is finite.
    """
    value = config.get(key, default)
    if value is None:
        raise BundleError(f"manifest: {at}.{key} is missing", fix="export the bundle again")
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(
            f"manifest: {at}.{key} must be {kind.__name__}, got {type(value).__name__}", fix="export the bundle again"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"manifest: {at}.{key} must be finite, got {value}", fix="export the bundle again")
    if isinstance(value, int) and not isinstance(value, bool) and value < least:
        raise BundleError(f"manifest: {at}.{key} must be at least {least}, got {value}", fix="export the bundle again")
    if isinstance(value, int) and value > most:
        raise BundleError(f"manifest: {at}.{key} must be at most {most}, got {value}", fix="export the bundle again")
    return value


def take_choice(config: Mapping[str, Any], key: str, choices: Iterable[str], *, at: str = "pipeline") -> str:
    """`config[key]`, which is one of `choices`; BundleError naming them when it is not."""
    word, words = take_field(config, key, str, at=at), tuple(choices)
    if word not in words:
        raise BundleError(
            f"manifest: unknown {at}.{key} '{word}'",
            allowed=name_nearest(word, words),
            fix="export the bundle again, or upgrade metagen-deploy",
        )
    return word


def take_strings(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of strings, empty when the key is missing."""
    values: list[Any] = take_field(config, key, list, [])
    if not all(isinstance(value, str) for value in values):
        raise BundleError(f"manifest: pipeline.{key} must be a list of strings", fix="export the bundle again")
    return tuple(values)


def take_ids(config: Mapping[str, Any], key: str, *, below: int) -> tuple[int, ...]:
    """A list of token ids of a vocabulary of `below`, empty when the key is missing."""
    values: list[Any] = take_field(config, key, list, [])
    if not all(type(value) is int and 0 <= value < below for value in values):
        raise BundleError(
            f"manifest: pipeline.{key} must be a list of token ids", allowed=f"0..{below - 1}", fix="export it again"
        )
    return tuple(values)


def take_named_ids(config: Mapping[str, Any], key: str, *, below: int) -> dict[str, int]:
    """Token ids of a vocabulary of `below` by name, empty when the key is missing."""
    values: dict[str, Any] = take_field(config, key, dict, {})
    if not all(type(value) is int and 0 <= value < below for value in values.values()):
        raise BundleError(
            f"manifest: pipeline.{key} must map names to token ids", allowed=f"0..{below - 1}", fix="export it again"
        )
    return values


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
        raise BundleError(
            f"manifest: pipeline.{key} names no graph '{name}'",
            allowed=name_nearest(name, graphs),
            fix="export the bundle again",
        )
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
