"""The plugins' CUDA sources compiled for the host, for tests without a GPU (`cuda_on_host.h`)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from engines import plugins

SOURCE = Path(plugins.__file__).parent / "cpp"


def _find_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-E", "x.cu"], capture_output=True, text=True, check=False).stderr
    tops = [line.split("TOP=")[1].strip() for line in said.splitlines() if "TOP=" in line]
    return Path(tops[0]) / "include" if tops else None


def compile_for_host(
    folder: Path, files: Sequence[str], *, source: Path = SOURCE, include: str = "", together: bool = False
) -> ctypes.CDLL:
    """A library of these files of `source`, written to `folder`.

    Args:
        include: a folder of further headers.
        together: the threads of a block meet.
    """
    compiler, headers = shutil.which("g++"), _find_headers()
    if compiler is None or headers is None:
        pytest.skip("g++ or CUDA's headers (nvcc) are not on this machine")
    folders = [f"-isystem{path}" for path in (headers, *([include] if include else []))]
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", *folders, f"-I{source}"]
    shim = ["-include", str(Path(__file__).parent / "cuda_on_host.h"), "-x", "c++"]
    if together:
        shim.insert(0, "-DMETAGEN_TOGETHER")
    paths = [str(source / name) for name in files]
    subprocess.run([compiler, *options, *shim, *paths, "-o", folder / "kernels.so"], check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def compile_mutant(folder: Path, files: Sequence[str], old: str, new: str, *, together: bool = False) -> ctypes.CDLL:
    """The same of a copy in which `old`, which has to be there once, is `new`."""
    copy = folder / "cpp"
    shutil.copytree(SOURCE, copy)
    found = [path for path in (copy / name for name in files) if old in path.read_text()]
    found += [path for path in copy.rglob("*.cuh") if old in path.read_text()]
    (path,) = found
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))
    return compile_for_host(folder, files, source=copy, together=together)
