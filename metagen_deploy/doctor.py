"""What this machine can export, check, build and run, found by looking; and the command that adds what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from engines.backends import probe_backends
from engines.backends.base import Availability
from metagen_deploy import __version__

_EXPORT_MODULES = {
    "torch": "torch",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "safetensors": "safetensors",
}
_CHECK_MODULES = {"polygraphy": "polygraphy"}
_INSTALL = "pip install 'metagen-deploy[{extra}]'"
_GPU_QUERY = "--query-gpu=name,compute_cap,memory.total,driver_version"


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One thing a user may want to do here; `fix` is the command that makes it possible."""

    verb: str
    possible: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The machine in words, and its abilities."""

    machine: tuple[tuple[str, str], ...]
    abilities: tuple[Ability, ...]


def examine_machine() -> Examination:
    """Look at the interpreter, the packages, the GPU and every backend; imports nothing that is not needed for it."""
    machine = (
        ("metagen-deploy", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("CPU", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores"),
        ("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.1f} GiB"),
        ("GPU", _describe_gpus()),
    )
    abilities = (
        _judge_packages("export", "specs and ONNX files", _EXPORT_MODULES, extra="export"),
        _judge_packages("check", "against golden data", _CHECK_MODULES, extra="onnxruntime"),
        *(ability for found in probe_backends() for ability in _judge_backend(found)),
    )
    return Examination(machine=machine, abilities=abilities)


def _describe_gpus() -> str:
    """Every NVIDIA GPU by its driver's own word; no CUDA context is made."""
    try:
        done = subprocess.run(
            ["nvidia-smi", _GPU_QUERY, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "none found (no answer from nvidia-smi)"
    fields = [line.split(", ") for line in done.stdout.splitlines()]
    return "; ".join(f"{f[0]}, SM {f[1]}, {f[2]}, driver {f[3]}" for f in fields if len(f) == 4) or "none found"


def _judge_packages(verb: str, detail: str, modules: dict[str, str], *, extra: str) -> Ability:
    missing = [package for package, module in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        fix = _INSTALL.format(extra=extra)
        return Ability(verb=verb, possible=False, detail=f"not installed: {', '.join(missing)}", fix=fix)
    return Ability(verb=verb, possible=True, detail=f"{detail}; {_list_versions(list(modules))}")


def _list_versions(packages: Sequence[str]) -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def _judge_backend(found: Availability) -> tuple[Ability, Ability]:
    title = f"{found.backend} {found.version}".strip()
    why = found.reason or "not possible on this machine"

    def judge(verb: str, possible: bool, detail: str) -> Ability:
        verb = f"{verb} with {found.backend}"
        if possible:
            return Ability(verb=verb, possible=True, detail=detail)
        return Ability(verb=verb, possible=False, detail=why, fix=found.fix)

    device = f" on {found.device}" if found.device else ""
    return judge("build", found.can_compile, title), judge("run", found.can_run, title + device)
