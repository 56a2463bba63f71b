"""Spec -> the contents of a bundle, in a folder that the caller stages.

    GraphModule --trace--> --lower--> portable graph --store weights--> <component>/<stem>.onnx
                                      golden data from torch        --> <component>/<stem>.golden.npz
    for every (target, precision):    PIPELINES[lowering, precision] --> <component>/<stem>.<target>-<precision>.onnx

Nothing here judges numbers: `engines.checking.parity` does, before the staged folder becomes a bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporters.calibration.measure import measure_ranges
from exporters.checkpoints import open_checkpoint, write_report
from exporters.checkpoints.tokenizers.assets import write_tokenizer
from exporters.finish import finish_bundle, list_versions
from exporters.garbage import collect_rarely
from exporters.golden.data import compute_outputs, write_evaluation, write_golden
from exporters.golden.noise_floor import NoiseFloor, measure_noise_floor
from exporters.golden.sizes import GoldenSizes, choose_golden_sizes
from exporters.lower import PORTABLE_OPSET, lower
from exporters.memory import find_free_bytes, page_out, release
from exporters.passes import (
    Decided,
    uses_ranges,
)
from exporters.stored_parameters import streaming_parameters
from exporters.trace import choose_sizes, trace
from exporters.typed_graphs import Variant, write_typed_graphs
from exporters.weights import WeightPool
from specs.bundle import Graph, IoTensor, Manifest
from specs.bundle.manifest import digest_text
from specs.graphs import GraphSpec
from specs.handlers import GraphModule, Handler, get_handler
from specs.load import dump_spec
from specs.progress import Progress
from specs.schema import Precision, Spec
from specs.sources import is_checkpoint, name_tokenizer_asset
from specs.targets import Target

#: Where the first dynamic dim aims while tracing: elsewhere than in the golden data, which shows a size that tracing
#: baked in.
_TRACE_NEAR = 3
_TRACE_SEED, _GOLDEN_SEED = 0, 1


@dataclass(kw_only=True)
class _Component:
    """A component's folder while it is being written."""

    folder: Path
    pool: WeightPool
    graphs: list[Graph] = field(default_factory=list)
    decided: Decided = field(default_factory=dict)


@collect_rarely()
def export_spec(
    spec: Spec,
    folder: Path,
    *,
    targets: Sequence[Target],
    precisions: Sequence[Precision],
    max_host_ram_bytes: int | None = None,
    progress: Progress,
) -> Manifest:
    """Write a bundle for `spec` into the empty `folder`.

    Args:
        precisions: replaces the spec's choice for every component; several give several typed graphs a target.
            Empty: what the spec asks for.
        max_host_ram_bytes: a noise floor that would take more is not measured; None: what the machine has.

    Raises:
        MetagenError: anything of the spec's making; see `specs.errors`.
    """
    progress(f"building {spec.name}", None)
    _write_assets(spec, folder)  # first: a damaged tokenizer is told before the work
    handler = get_handler(spec)
    checkpoint = open_checkpoint(Path(spec.weights.source), spec) if is_checkpoint(Path(spec.weights.source)) else None
    modules = list(handler.build(spec, scratch=folder, parameters=checkpoint.source if checkpoint else None))
    components: dict[str, _Component] = {}
    count = len(modules)
    while modules:
        name, start = modules[0].component, 1 - len(modules) / count
        component = _open_component(components, folder, name)
        wanted = [
            Variant(target=target, precision=precision)
            for target in targets
            for precision in (precisions or (spec.precision_of(name),))
        ]
        shared = any(other.component == name for other in modules[1:])
        component.graphs.append(
            _export_graph(
                spec,
                handler,
                modules.pop(0),
                component,
                wanted,
                keep_weights=shared,
                max_host_ram_bytes=max_host_ram_bytes,
                progress=_shift(progress, start),
            )
        )
    (folder / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
    if checkpoint:
        write_report(folder, checkpoint)
    graphs = tuple(graph for component in components.values() for graph in component.graphs)
    pools = {name: component.pool for name, component in components.items()}
    return finish_bundle(folder, _make_manifest(spec, handler, graphs), components=pools)


def _make_manifest(spec: Spec, handler: Handler, graphs: tuple[Graph, ...]) -> Manifest:
    return Manifest(
        name=spec.name if spec.variant is None else f"{spec.name}:{spec.variant}",
        spec_digest=digest_text(dump_spec(spec)),
        created_by=list_versions(),
        dims={name: (dim.min, dim.opt, dim.max) for name, dim in spec.dims.items()},
        pipeline=handler.describe_pipeline(spec),
        graphs=graphs,
        parity=spec.parity.model_dump(exclude_none=True)
        | ({"top1_max_loss": spec.evaluation.max_loss} if spec.evaluation else {}),
    )


def _write_assets(spec: Spec, folder: Path) -> None:
    """Copy each component's tokenizer to where the bundle keeps it."""
    for name, tokenizer in spec.tokenizers.items():
        path = folder / name_tokenizer_asset(name)
        path.parent.mkdir(exist_ok=True)
        write_tokenizer(Path(tokenizer.source), path)


def _export_graph(
    spec: Spec,
    handler: Handler,
    module: GraphModule,
    component: _Component,
    wanted: Sequence[Variant],
    *,
    keep_weights: bool,
    max_host_ram_bytes: int | None,
    progress: Progress,
) -> Graph:
    graph: GraphSpec = module
    page_out(module.module)
    sizes = choose_golden_sizes(spec, handler, module)
    golden = component.folder / f"{graph.file_stem}.golden.npz"
    floor = _write_golden(spec, handler, module, golden, sizes, max_host_ram_bytes, progress)
    page_out(module.module)

    model = _trace_and_lower(spec, handler, module, progress)
    page_out(module.module)
    progress(f"{graph.name}: writing weights", None)
    custom_ops = tuple(sorted({name for _, name, _ in model.functions}))
    component.pool.store(model)
    portable = component.folder / f"{graph.file_stem}.onnx"
    ir.save(model, portable)
    del model
    if not keep_weights and not any(uses_ranges(v.target.lowering, v.precision) for v in wanted):
        release(module.module)

    typed = write_typed_graphs(
        portable,
        wanted,
        component.pool,
        calibrate=lambda tensors: measure_ranges(
            portable,
            tensors,
            _stream_samples(spec, handler, module),
            method=spec.calibration.method,
            progress=progress,
        ),
        decided=component.decided,
        largest={name: dim.max for name, dim in spec.dims.items()},
        progress=progress,
    )
    if not keep_weights:
        release(module.module)  # int8 calibration may have needed the module
    return Graph(
        name=graph.name,
        component=graph.component,
        file=f"{graph.component}/{portable.name}",
        golden=f"{graph.component}/{graph.file_stem}.golden.npz",
        inputs=tuple(IoTensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in graph.inputs),
        outputs=tuple(IoTensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in graph.outputs),
        custom_ops=custom_ops,
        reduced_golden=sizes.reduced,
        noise_floor=floor.values,
        no_noise_floor=floor.unknown,
        evaluation=_write_evaluation(spec, handler, graph, component.folder),
        typed=typed,
    )


def _write_golden(
    spec: Spec,
    handler: Handler,
    module: GraphModule,
    path: Path,
    chosen: GoldenSizes,
    max_host_ram_bytes: int | None,
    progress: Progress,
) -> NoiseFloor:
    progress(f"{module.name}: golden data from torch{f', {chosen.reduced}' if chosen.reduced else ''}", None)
    with streaming_parameters(module.module):
        inputs = handler.make_realistic_inputs(spec, module, sizes=chosen.sizes, seed=_GOLDEN_SEED)
    outputs = compute_outputs(module, inputs)
    write_golden(path, inputs, outputs)
    progress(f"{module.name}: noise floor from torch in float64", None)
    free_bytes = find_free_bytes(max_host_ram_bytes)
    floor = measure_noise_floor(module, inputs, outputs, free_bytes=free_bytes, at_most=chosen.at_most)
    if floor.unknown:
        progress(f"{module.name}: no noise floor: {floor.unknown}", None)
    return floor


def _trace_and_lower(spec: Spec, handler: Handler, module: GraphModule, progress: Progress) -> ir.Model:
    progress(f"{module.name}: tracing", None)
    sizes = choose_sizes(spec.dims, near=_TRACE_NEAR)
    program = trace(module, spec.dims, handler.make_inputs(spec, module, sizes=sizes, seed=_TRACE_SEED))
    progress(f"{module.name}: lowering to ONNX opset {PORTABLE_OPSET}", None)
    return lower(program, module)


def _stream_samples(spec: Spec, handler: Handler, module: GraphModule) -> Iterator[Mapping[str, np.ndarray]]:
    """Calibration samples; making one may run the module (what decode sees is made by prefill)."""
    samples = handler.load_calibration(spec, module)
    while True:
        with streaming_parameters(module.module):
            sample = next(samples, None)
        if sample is None:
            return
        yield sample


def _write_evaluation(spec: Spec, handler: Handler, graph: GraphSpec, folder: Path) -> str | None:
    held_out = handler.load_evaluation(spec, graph)
    if held_out is None:
        return None
    path = folder / f"{graph.file_stem}.evaluation.npz"
    write_evaluation(path, *held_out)
    return f"{folder.name}/{path.name}"


def _open_component(components: dict[str, _Component], folder: Path, name: str) -> _Component:
    if name not in components:
        (folder / name).mkdir()
        components[name] = _Component(folder=folder / name, pool=WeightPool(folder / name))
    return components[name]


def _shift(progress: Progress, start: float) -> Progress:
    """Steps of one graph report where the whole export stands when they cannot say themselves."""
    return lambda text, fraction: progress(text, start if fraction is None else fraction)
