"""A portable graph -> one typed graph for every target and precision that is wanted.

PIPELINES[lowering, precision] --> <stem>.<target>-<precision>.onnx, and the same with nodes left to plugins
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from exporters.passes import (
    Decided,
    PipelineResult,
    Range,
    list_quantizable_tensors,
    run_pipeline,
    share_beginnings,
    takes_plugins,
    uses_ranges,
)
from exporters.weights import WeightPool
from specs.bundle import TypedGraph
from specs.progress import Progress
from specs.schema import Precision
from specs.targets import Target

Calibrate = Callable[[Sequence[str]], Mapping[str, Range]]

#: Of the typed graph that leaves nodes to plugins, beside the one with bodies.
_PLUGIN_SUFFIX = ".plugin.onnx"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One typed graph that is wanted: where it shall run, and in what precision."""

    target: Target
    precision: Precision
    as_it_is: bool = False  # `precision` is what the portable graph has already: it is lowered, and not typed


def write_typed_graphs(
    portable: Path,
    wanted: Sequence[Variant],
    pool: WeightPool,
    *,
    calibrate: Calibrate,
    decided: Decided,
    largest: Mapping[str, int] | None = None,
    progress: Progress,
) -> tuple[TypedGraph, ...]:
    """Lower and type the portable graph for every variant; targets that lower alike share the work.

    Args:
        calibrate: gives the ranges of the tensors it is asked for; called once, and only when something is INT8.
        decided: about the component's weights, by its earlier graphs; see `run_pipeline`.
        largest: the largest size of each dim that has a name; see `takes_plugins`.
    """
    stem, component = portable.stem, portable.parent.name
    typed: list[TypedGraph] = []
    done: dict[tuple[str, Precision], tuple[_Lowered, _Lowered | None]] = {}
    ranges: Mapping[str, Range] | None = None
    model = ir.load(portable)
    begun = share_beginnings(
        model, [(variant.target.lowering, _find_typing(variant)) for variant in wanted], largest=largest
    )
    for variant in wanted:
        target, precision = variant.target, variant.precision
        typing = _find_typing(variant)
        key = (target.lowering, typing)
        if key not in done:
            progress(f"{component}/{stem}: lowering to {precision} for {target.name}", None)
            if ranges is None and uses_ranges(target.lowering, typing):
                ranges = calibrate(list_quantizable_tensors(model))
            lower_graph = partial(
                run_pipeline, begun, lowering=target.lowering, precision=typing, ranges=ranges, decided=decided
            )
            bodies = _store(lower_graph(), pool)
            takes = takes_plugins(model, target.lowering, typing, largest=largest)
            # its weights are those of the graph with bodies, so it costs a few kilobytes
            nodes = _store(lower_graph(plugins=True, largest=largest), pool) if takes else None
            done[key] = (bodies, nodes)
        bodies, nodes = done[key]
        path = portable.parent / f"{stem}.{target.name}-{precision}.onnx"
        path.write_bytes(bodies.data)
        if nodes is not None:
            path.with_suffix(_PLUGIN_SUFFIX).write_bytes(nodes.data)
        typed.append(
            TypedGraph(
                target=target.name,
                precision=precision,
                lowering=target.lowering,
                opset=bodies.opset,
                file=f"{component}/{path.name}",
                keep_fp32=bodies.keep_fp32,
                plugin_file=f"{component}/{path.with_suffix(_PLUGIN_SUFFIX).name}" if nodes else None,
                plugin_keep_fp32=nodes.keep_fp32 if nodes else (),
            )
        )
    return tuple(typed)


def _find_typing(variant: Variant) -> Precision:
    """The precision that the pipeline writes into the graph."""
    return "fp32" if variant.as_it_is else variant.precision


@dataclass(frozen=True, kw_only=True)
class _Lowered:
    """A typed graph as it is written."""

    data: bytes
    opset: int
    keep_fp32: tuple[str, ...]


def _store(result: PipelineResult, pool: WeightPool) -> _Lowered:
    pool.store(result.model)
    data = ir.to_proto(result.model).SerializeToString()
    return _Lowered(data=data, opset=result.model.opset_imports[""], keep_fp32=result.keep_fp32)
