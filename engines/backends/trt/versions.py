"""What differs between TensorRT 8.6, 10.x, 11.x and TensorRT-RTX 1.x, as one decision from the names a module has.

Their Python modules have one shape. A feature is looked for by name and never by version or enum number (numbers
shift); versions decide only what no name shows: the opsets the parser reads.

    network flag      STRONGLY_TYPED where the name exists, else EXPLICIT_BATCH where it does, else none (11.x)
    precision         written in the typed graph; compilers without strong typing get FP16/BF16/INT8 flags and
                      OBEY_PRECISION_CONSTRAINTS, and fp32 on the nodes to keep
    target            `set_compute_capability` where it exists (ahead of time, RTX), else the GPU that builds
    timing cache      everywhere but in TensorRT-RTX, whose timing cache functions do nothing since 1.2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The types whose members decide.
INSPECTED = ("NetworkDefinitionCreationFlag", "BuilderFlag", "IBuilderConfig", "ComputeCapability")

#: Flags for a compiler without strong typing, by the graph's precision.
WEAK_FLAGS: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16", "OBEY_PRECISION_CONSTRAINTS"),
    "bf16": ("BF16", "OBEY_PRECISION_CONSTRAINTS"),
    "int8": ("INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"),
}

#: (module, first version) -> opsets its parser documents, newest first.
OPSETS: tuple[tuple[str, tuple[int, int], tuple[int, int]], ...] = (
    ("tensorrt_rtx", (1, 0), (9, 24)),
    ("tensorrt", (10, 13), (9, 24)),
    ("tensorrt", (10, 0), (9, 20)),
    ("tensorrt", (8, 0), (7, 17)),
)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """How one version is driven. Flags are names, to be looked up in the module that has them."""

    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    strongly_typed: bool
    ahead_of_time: bool  # takes a list of compute capabilities, needs no GPU
    timing_cache: bool
    missing_flags: tuple[str, ...] = ()  # needed for the precision, and not there


def read_names(trt: Any) -> dict[str, frozenset[str]]:
    """The public names of the inspected types, and of the module itself under "module"."""
    names = {"module": frozenset(n for n in dir(trt) if not n.startswith("_"))}
    for kind in INSPECTED:
        names[kind] = frozenset(n for n in dir(getattr(trt, kind, object)) if not n.startswith("_"))
    return names


def decide(module: str, names: Mapping[str, frozenset[str]], precision: str) -> Decisions:
    """How to drive the version of `module` ("tensorrt", "tensorrt_rtx") that has `names`, for one precision."""
    creation, flags = names["NetworkDefinitionCreationFlag"], names["BuilderFlag"]
    typed_flags = "FP16" in flags or "EXPLICIT_BATCH" in creation  # the generations that also had weak typing
    strongly_typed = "STRONGLY_TYPED" in creation or not typed_flags
    wanted = () if strongly_typed else WEAK_FLAGS.get(precision, (precision.upper(),))
    if "STRONGLY_TYPED" in creation:
        network_flags: tuple[str, ...] = ("STRONGLY_TYPED",)
    else:
        network_flags = ("EXPLICIT_BATCH",) if "EXPLICIT_BATCH" in creation else ()
    return Decisions(
        network_flags=network_flags,
        builder_flags=tuple(f for f in wanted if f in flags),
        strongly_typed=strongly_typed,
        ahead_of_time="set_compute_capability" in names["IBuilderConfig"],
        timing_cache=module != "tensorrt_rtx" and "create_timing_cache" in names["IBuilderConfig"],
        missing_flags=tuple(f for f in wanted if f not in flags),
    )


def find_opsets(module: str, version: str) -> tuple[int, int]:
    """(lowest, highest) opset of the standard operators that the parser of this version documents."""
    digits = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    release = (digits[0], digits[1]) if len(digits) == 2 else (0, 0)
    for name, first, opsets in OPSETS:
        if name == module and release >= first:
            return opsets
    return (7, 17)
