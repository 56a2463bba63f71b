"""Targets as data: what a model is exported for, and whether it fits.

`targets/*.yaml` holds a machine each, `targets/platforms.yaml` the compilers; `h200@trt8.6` or
`jetson-orin-nx-16gb@jp60` picks a platform, a bare name takes the machine's first. The estimate of memory is
arithmetic on the spec alone, so a model that cannot fit is refused before anything is exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specs.document import parse_document, read_text
from specs.errors import TargetError, name_nearest
from specs.graphs import count_activations, count_parameters, find_family
from specs.schema import IMPLEMENTED_PRECISIONS, Spec

FOLDER = Path(__file__).parent
GIB = 1 << 30
_SEPARATOR = "@"

#: Bytes of a stored weight, and of an activation beside it (int8 engines compute attention and norms in fp16).
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_ACTIVATION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine and the compiler on it."""

    name: str  # as asked for: "h200" or "h200@trt8.6"
    title: str
    kind: str  # "cpu", "desktop", "server" or "jetson"
    platform: str  # "trt10.13"
    platforms: tuple[str, ...]  # what may follow the @; the first is the default
    compute_capability: str  # "8.9"; "" for a CPU
    memory_bytes: int
    reserved_bytes: int  # of these, what the system keeps (a Jetson's GPU shares its memory with it)
    backends: tuple[str, ...]
    lowering: str
    opset: int
    precisions: tuple[str, ...]
    tensorrt: str  # version or range, "" without TensorRT
    jetpack: str  # "" for anything but a Jetson
    container: str
    proof: str  # what this project has executed: "run here", "compiled only", "not run", or where and when it was run


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An estimate of the memory that building and running a spec takes on a target; see `estimate_fit`."""

    parameters: int
    weight_bytes: int
    activation_bytes: int
    cache_bytes: int
    workspace_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    verdict: str


@cache
def _read(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.yaml"
    return parse_document(read_text(path), source=path.name).data


def _list_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "platforms")


def list_targets() -> tuple[Target, ...]:
    """Every machine with its default platform, by name."""
    return tuple(load_target(name) for name in _list_names())


@cache
def load_target(name: str) -> Target:
    """The target called `machine` or `machine@platform`.

    Raises:
        TargetError: there is no such machine, or it does not have this platform.
    """
    machine, _, platform = name.partition(_SEPARATOR)
    if machine not in _list_names():
        raise TargetError(
            f"unknown target '{machine}'",
            allowed=name_nearest(machine, _list_names()),
            fix="see them all: metagen-deploy targets",
        )
    data = _read(machine)
    if _SEPARATOR in name and platform not in data["platforms"]:
        raise TargetError(
            f"target '{machine}' has no platform '{platform}'",
            allowed=name_nearest(platform, data["platforms"]),
            fix=f"write '{machine}' for {data['platforms'][0]}, or '{machine}@' and one of these",
        )
    platform = platform or data["platforms"][0]
    compiler = _read("platforms")[platform]
    return Target(
        name=name,
        title=data["title"],
        kind=data["kind"],
        platform=platform,
        platforms=data["platforms"],
        compute_capability=data.get("compute_capability", ""),
        memory_bytes=int(data["memory_gib"] * GIB),
        reserved_bytes=int(data["reserved_gib"] * GIB),
        backends=compiler["backends"],
        lowering=compiler["lowering"],
        opset=compiler["opset"],
        precisions=tuple(p for p in data["precisions"] if p in compiler["precisions"]),
        tensorrt=compiler.get("tensorrt", ""),
        jetpack=compiler.get("jetpack", ""),
        container=compiler["container"],
        proof=data["proof"].get(platform, "not run"),
    )


def estimate_fit(spec: Spec, target: Target) -> Fit:
    """Estimate the memory of `spec` on `target`, at the precisions the spec asks for and every dim's `max`.

    - weights: parameters times their bytes; embedding tables stay fp32 in an int8 graph.
    - activations: of the graph that needs most, three copies of the widest layer's tensors and of the attention
      scores (they are counted although a fused kernel never writes them), and float32 inputs and outputs.
    - KV cache: keys and values in and out, both float32, as the graph's interface is.
    - build workspace: a compiler holds the largest component's fp32 weights once more, and at least 0.25 GiB.
    """
    counts = count_parameters(spec)
    family = find_family(spec.components)
    sizes = {name: dim.max for name, dim in {**family.list_dims(spec.components), **spec.dims}.items()}
    activations = count_activations(spec, sizes)
    weight_bytes = activation_bytes = cache_bytes = 0
    for name, component in spec.components.items():
        precision = spec.precision_of(name)
        table = component.count_table() if precision == "int8" else 0
        weight_bytes += (counts[name] - table) * _WEIGHT_BYTES.get(precision, 2) + table * 4
        held = activations[name]
        activation_bytes = max(
            activation_bytes, 3 * held.layer * _ACTIVATION_BYTES.get(precision, 2) + 4 * held.interface
        )
        cache_bytes += 4 * component.count_state(sizes)
    workspace_bytes = max(GIB // 4, 4 * max(counts.values()))
    total = weight_bytes + activation_bytes + cache_bytes + workspace_bytes
    available = target.memory_bytes - target.reserved_bytes
    parts = (
        ("weights", weight_bytes),
        ("activations", activation_bytes),
        ("KV cache", cache_bytes),
        ("build workspace", workspace_bytes),
    )
    listed = ", ".join(f"{label} {size / GIB:.2f}" for label, size in parts if size)
    needs = f"needs about {total / GIB:.2f} GiB ({listed}), {target.name} has {available / GIB:.2f} GiB"
    refused = list_refused_precisions(spec, target)
    fits = total <= available and not refused
    words = [needs, *(f"{target.name} does not take {precision} ({component})" for component, precision in refused)]
    return Fit(
        parameters=sum(counts.values()),
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        cache_bytes=cache_bytes,
        workspace_bytes=workspace_bytes,
        total_bytes=total,
        available_bytes=available,
        fits=fits,
        verdict=("fits: " if fits else "does not fit: ") + "; ".join(words),
    )


def list_refused_precisions(spec: Spec, target: Target) -> tuple[tuple[str, str], ...]:
    """(component, precision) for each that `target` cannot run, or that no pass pipeline exists for."""
    asked = ((name, spec.precision_of(name)) for name in spec.components)
    return tuple((n, p) for n, p in asked if p not in target.precisions or p not in IMPLEMENTED_PRECISIONS)


def require_fit(spec: Spec, target: Target) -> Fit:
    """The estimate, when `spec` can go on `target`.

    Raises:
        TargetError: a precision the target does not take, or more memory than it has; with the numbers.
    """
    fit = estimate_fit(spec, target)
    if fit.fits:
        return fit
    for component, precision in list_refused_precisions(spec, target):
        usable = [p for p in target.precisions if p in IMPLEMENTED_PRECISIONS]
        raise TargetError(
            f"target '{target.name}' does not take {precision}",
            where=f"component '{component}' of {spec.name}",
            allowed=", ".join(usable),
            fix=f"set precision.{component} to one of these, or choose another target",
        )
    raise TargetError(
        f"'{spec.name}' does not fit target '{target.name}'",
        got=fit.verdict.removeprefix("does not fit: "),
        allowed=f"{fit.available_bytes / GIB:.2f} GiB: {target.memory_bytes / GIB:.2f} GiB less"
        f" {target.reserved_bytes / GIB:.2f} GiB for the system",
        fix=f"lower {' or '.join(f'dims.{name}.max' for name in spec.dims)}, choose a lower"
        " precision, or another target",
    )
