"""Which engines this machine makes of a bundle: (graph, typed graph, target, backend, sizes)..., each one job.

Every typed graph gets an engine for all its ranges. `fixed` adds engines for one size each: a static network is fused
further and finds other kernels. TensorRT 8.6 on an H200: ViT-B/16 0.60 ms in place of 0.66 at batch 1 and 3.41 in
place of 3.79 at 32, a decode step 2 % (`benchmarks/RESULTS.md`). The runtime takes one for
requests of exactly its sizes (`engines.runtime.executors.fixed_sizes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engines.backends import load_backend
from engines.backends.base import Availability, Backend
from engines.building.profiles import Range, list_dynamic_dims
from engines.runtime.executors.fixed_sizes import spell_sizes
from specs.bundle import Graph, Manifest, TypedGraph
from specs.errors import BuildError, name_nearest
from specs.targets import Target, list_targets, load_target

Sizes = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One engine to make."""

    graph: Graph
    typed: TypedGraph
    target: Target
    backend: Backend
    available: Availability
    sizes: Sizes = field(default_factory=dict)  # of every dim of the graph; {}: all ranges

    @property
    def file(self) -> str:
        """Where the engine goes; the typed graph itself for a backend that runs that."""
        if not self.backend.writes_engines:
            return self.typed.file
        fixed = "".join(f".{re.sub(r'[^A-Za-z0-9_]', '_', name)}{size}" for name, size in self.sizes.items())
        return f"{self.typed.file.removesuffix('.onnx')}{fixed}.{self.backend.name}.plan"

    def narrow(self, dims: Mapping[str, Range]) -> dict[str, Range]:
        """The ranges that the engine is made for."""
        return {**dims, **{name: (size, size, size) for name, size in self.sizes.items()}}

    def describe_sizes(self) -> tuple[str, ...]:
        """The note of an engine of fixed sizes."""
        return (f"for {spell_sizes(self.sizes)} alone",) if self.sizes else ()


def choose_jobs(
    manifest: Manifest, target: str | None, backend: str | None, fixed: Sequence[Sizes] = ()
) -> tuple[list[Job], dict[str, str]]:
    """The jobs this machine can do, and the reason for each typed graph it cannot. Raises BuildError."""
    typed_graphs = [(graph, typed) for graph in manifest.graphs for typed in graph.typed]
    known = {typed.target for _, typed in typed_graphs}
    if target is not None and target not in known:
        exists = target.split("@")[0] in {one.name for one in list_targets()}
        raise BuildError(
            f"this bundle has no graph for the target '{target}'",
            allowed=name_nearest(target, known),
            fix=f"export it for that target too: --target {target}" if exists else "use one of these",
        )
    if backend is not None:
        load_backend(backend)  # refuses an unknown name
    _require_fitting(manifest, fixed)
    jobs, not_built = [], {}
    for graph, typed in typed_graphs:
        if target is None or typed.target == target:
            found = _choose_backend(load_target(typed.target), backend)
            if isinstance(found, str):
                not_built[typed.file] = found
                continue
            chosen, available = found
            job = Job(graph=graph, typed=typed, target=load_target(typed.target), backend=chosen, available=available)
            fixed_here = _select(graph, fixed) if chosen.writes_engines else []
            jobs += [job, *(replace(job, sizes=sizes) for sizes in fixed_here)]
    return jobs, not_built


def _select(graph: Graph, fixed: Sequence[Sizes]) -> list[dict[str, int]]:
    """Those of `fixed` that name every dim of the graph, without the dims that it has not, each once."""
    names = list_dynamic_dims(graph.inputs)
    chosen = [{name: sizes[name] for name in names} for sizes in fixed if names and set(names) <= set(sizes)]
    return [sizes for index, sizes in enumerate(chosen) if sizes not in chosen[:index]]


def _require_fitting(manifest: Manifest, fixed: Sequence[Sizes]) -> None:
    for sizes in fixed:
        if not any(_select(graph, [sizes]) for graph in manifest.graphs):
            raise BuildError(
                "no graph of this bundle has its dims fixed by these sizes",
                got=spell_sizes(sizes),
                allowed="; ".join(
                    f"{g.name}: {', '.join(list_dynamic_dims(g.inputs)) or 'none'}" for g in manifest.graphs
                ),
                fix="name every dim of a graph: --fixed "
                + ",".join(f"{name}={opt}" for name, (_, opt, _) in manifest.dims.items()),
            )
        for name, size in sizes.items():
            low, _, high = manifest.dims.get(name, (size, size, size))
            if not low <= size <= high:
                raise BuildError(
                    f"the size of dim '{name}' is outside the bundle's range",
                    got=str(size),
                    allowed=f"{low} to {high}",
                    fix=f"choose one inside, or export the bundle again: --dim {name}=MIN:OPT:MAX",
                )


def _choose_backend(target: Target, wanted: str | None) -> tuple[Backend, Availability] | str:
    """The first backend of the target that can compile for it here, or why there is none."""
    if wanted is not None and wanted not in target.backends:
        return f"target '{target.name}' is served by {', '.join(target.backends)}, not by {wanted}"
    reasons = []
    for name in (wanted,) if wanted else target.backends:
        backend = load_backend(name)
        available = backend.probe()
        reason = backend.describe_capability(target.compute_capability) if available.version else ""
        if available.can_compile and not reason:
            return backend, available
        reasons.append(f"{name}: {reason or available.reason}" + ("" if reason else f" ({available.fix})"))
    return "; ".join(reasons)


def refuse_empty(folder: Path, not_built: Mapping[str, str]) -> None:
    """Raises BuildError: there is no job here."""
    reasons = "\n           ".join(dict.fromkeys(not_built.values()))
    raise BuildError(
        "nothing of this bundle can be compiled on this machine" if not_built else "this bundle has no typed graphs",
        where=str(folder),
        got=reasons or None,
        fix="build it on the machine it is for; see what this one can do: metagen-deploy doctor",
    )
