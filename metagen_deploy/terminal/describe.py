"""What there is, as tables: the shipped specs, one spec, the targets, this machine. Reads values, measures nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from metagen_deploy.doctor import Examination
from metagen_deploy.terminal.tables import format_bytes, format_count, mark, print_line, print_table
from specs.document import parse_document, read_text
from specs.graphs import count_macs, count_parameters, list_graphs
from specs.load import load_spec
from specs.schema import Spec, TensorSpec
from specs.sources import PROOF, ZOO, list_zoo
from specs.targets import GIB, Fit, Target, load_target

_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_DECODER_TOKENS = 128


def print_zoo() -> None:
    """One row a shipped spec, with what this project has proven of it."""
    specs = [load_spec(name) for name in list_zoo()]
    proof = parse_document(read_text(PROOF), source=PROOF.name).data
    print_table(
        "Shipped specs",
        ("name", "modality", "objective", "parameters>", "state", "parts", "variants"),
        [
            (
                spec.name,
                _describe_modality(spec),
                spec.objective,
                format_count(sum(count_parameters(spec).values())),
                proof[spec.name],
                ", ".join(_count_kinds(spec)),
                ", ".join(_list_variants(spec.name)),
            )
            for spec in specs
        ],
    )
    print_line(
        "whole path: `tiny` exported in fp16 and int8, run in ONNX Runtime against torch, compiled by TensorRT-RTX"
    )
    print_line("weights are random unless trained is said: structure, numbers and speed are real, answers are not")
    print_line("more of one: metagen-deploy show NAME, or NAME:VARIANT; where each stands: docs/models.md")


def _count_kinds(spec: Spec) -> list[str]:
    """Each kind of component once, with how many there are where there are several."""
    kinds = Counter(part.kind for part in spec.components.values())
    return [kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items()]


def _list_variants(name: str) -> list[str]:
    path = ZOO / f"{name}.yaml"
    return list(parse_document(read_text(path), source=path.name).data.get("variants", {}))


def _describe_modality(spec: Spec) -> str:
    return f"{' + '.join(spec.modality.inputs)} -> {' + '.join(spec.modality.outputs)}"


def print_spec(spec: Spec, fits: Sequence[tuple[Target, Fit]]) -> None:
    """Components, interface, and the verdict on each target."""
    variant = f":{spec.variant}" if spec.variant else ""
    print_line(f"{spec.name}{variant}: {_describe_modality(spec)}, {spec.architecture}, {spec.objective}", style="bold")
    if spec.description:
        print_line(spec.description.strip())
    if advised := spec.list_objective_advice():
        usual = " or ".join(advised)
        print_line(f"advice: for {_describe_modality(spec)} the field uses {usual}; this spec says {spec.objective}")
    _print_components(spec)
    if any(part.kind == "text.decoder" for part in spec.components.values()):
        print_line(f"MACs of a decoder: reading a prompt of {_DECODER_TOKENS} tokens")
    _print_interface(spec)
    if spec.dims:
        ranges = (f"{name} {dim.min}..{dim.max}, tuned for {dim.opt}" for name, dim in spec.dims.items())
        print_line("dims: " + "; ".join(ranges))
    weights, samples = Path(spec.weights.source).name, Path(spec.calibration.source).name
    print_line(f"weights: {weights}; int8 ranges: {samples} ({spec.calibration.method})")
    _print_fits(fits)


def _print_components(spec: Spec) -> None:
    parameters, macs = count_parameters(spec), count_macs(spec, tokens=_DECODER_TOKENS)
    rows = [
        (
            name,
            part.kind,
            spec.precision_of(name),
            format_count(parameters[name]),
            *(format_bytes(parameters[name] * size) for size in _BYTES.values()),
            format_count(macs[name]),
        )
        for name, part in spec.components.items()
    ]
    total = sum(parameters.values())
    if len(rows) > 1:
        sizes = (format_bytes(total * size) for size in _BYTES.values())
        rows.append(("all", "", "", format_count(total), *sizes, format_count(sum(macs.values()))))
    print_table(
        "Components",
        ("component", "kind", "precision", "parameters>", *(f"weights {p}>" for p in _BYTES), "MACs a sample>"),
        rows,
    )


def _print_interface(spec: Spec) -> None:
    def spell(tensor: TensorSpec) -> str:
        return f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"

    def shorten(tensors: Sequence[TensorSpec]) -> str:
        named = [spell(tensor) for tensor in tensors]
        return "\n".join(named if len(named) <= 5 else [*named[:3], f"… {len(named) - 4} more …", named[-1]])

    graphs = list_graphs(spec)
    print_table(
        "Graphs", ("graph", "inputs", "outputs"), [(g.name, shorten(g.inputs), shorten(g.outputs)) for g in graphs]
    )


def _print_fits(fits: Sequence[tuple[Target, Fit]]) -> None:
    print_table(
        "Targets",
        ("target", "weights>", "activations>", "KV cache>", "build>", "in all>", "has>", "verdict"),
        [
            (
                target.name,
                *(
                    format_bytes(size) if size else "-"
                    for size in (
                        fit.weight_bytes,
                        fit.activation_bytes,
                        fit.cache_bytes,
                        fit.workspace_bytes,
                        fit.total_bytes,
                        fit.available_bytes,
                    )
                ),
                mark(fit.fits, "fits" if fit.fits else fit.verdict),
            )
            for target, fit in fits
        ],
    )


def print_targets(targets: Sequence[Target]) -> None:
    """One row a machine, with the compilers it may have and what this project has executed of them."""
    rows = []
    for target in targets:
        platforms = [load_target(f"{target.name}@{platform}") for platform in target.platforms]
        executed = (f"{one.platform}: {one.proof}" for one in platforms if one.proof != "not run")
        rows.append(
            (
                target.name,
                target.title,
                target.compute_capability or "-",
                f"{target.memory_bytes / GIB:.1f} GiB",
                " ".join(one.platform for one in platforms),
                target.jetpack or "-",
                " ".join(target.precisions),
                ", ".join(executed) or "not run",
            )
        )
    print_table(
        "Targets",
        ("target", "machine", "SM", "memory>", "platforms", "JetPack", "precisions", "proven by this project"),
        rows,
    )
    print_line("TARGET means its first platform; TARGET@PLATFORM names another, e.g. jetson-orin-nx-16gb@jp60.")


def print_examination(examination: Examination) -> None:
    """The machine, then a row an ability, then the commands that would add more."""
    print_table("This machine", ("", ""), examination.machine)
    print_table(
        "What it can do",
        ("", "", ""),
        [
            (ability.verb, mark(ability.possible, "yes" if ability.possible else "no"), ability.detail)
            for ability in examination.abilities
        ],
    )
    for fix, verbs in _group_fixes(examination).items():
        print_line(f"to {', '.join(verbs)}: {fix}")


def _group_fixes(examination: Examination) -> dict[str, list[str]]:
    fixes: dict[str, list[str]] = {}
    for ability in examination.abilities:
        if ability.fix:
            fixes.setdefault(ability.fix, []).append(ability.verb)
    return fixes
