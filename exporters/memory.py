"""Keeps an export's memory near the largest tensor instead of the whole model, and says how much there is.

Parameters lie in mapped files (`specs.parameters` puts them there). Between two steps that need them, `page_out`
lets the system take their pages back; touching them reads them again, mostly from its cache. What happens while a
module computes is in `stored_parameters.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from specs.handlers import get_handler
from specs.parameters.mapped import drop_tensor, lies_in_file
from specs.schema import Spec
from specs.system.pages import list_file_mappings, trim_heap


def page_out(module: nn.Module) -> None:
    """Drop the pages of parameters in mapped files from this process, and give freed heap back to the system."""
    mappings = list_file_mappings()
    for parameter in module.parameters():
        if lies_in_file(parameter, mappings):
            drop_tensor(parameter)
    trim_heap()


def release(module: nn.Module) -> None:
    """Give up the parameters: they are in the bundle now, and everything after works from there.

    Dropping the module would not do: torch's exporter and onnxscript's rewriter keep references to the last model.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    trim_heap()


def find_free_bytes(limit_bytes: int | None = None) -> int | None:
    """Memory that this process may still take: the system's, its container's, and what `limit_bytes` leaves.

    Args:
        limit_bytes: what the process may have in all.

    Returns:
        None where nothing of it is known.
    """
    known = []
    available = _read_kilobytes(Path("/proc/meminfo"), "MemAvailable:")
    if available is not None:
        known.append(available)
    used = _read_kilobytes(Path("/proc/self/status"), "RssAnon:")
    if limit_bytes is not None:
        known.append(limit_bytes - (used or 0))
    container = _read_container_bytes(Path("/sys/fs/cgroup"))
    if container is not None:
        known.append(container)
    return min(known, default=None)


def _read_kilobytes(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), None)


def _read_container_bytes(folder: Path) -> int | None:
    """What a cgroup (version 2) leaves: its limit less what is no cache of files. None without a limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - sum(int(line.split()[1]) for line in lines if line.startswith("anon "))


def find_largest_tensor(spec: Spec) -> int:
    """Elements of the largest parameter; nothing is allocated."""
    with torch.device("meta"):
        components = get_handler(spec).make_components(spec)
    return max(parameter.numel() for module in components.values() for parameter in module.parameters())
