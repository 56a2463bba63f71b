"""Arrays out of files that a user hands over: .npy, .npz and .csv, with errors that say what would be taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.media.files import read_bytes
from specs.arrays import UnreadableArrayError, read_npy, read_npz
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array


def load_array(file: str) -> Array:
    """The array of a .npy; anything wrong with it is an InputError."""
    try:
        return read_npy(file)
    except UnreadableArrayError as error:
        raise InputError(
            "this file holds no array", where=file, got=str(error), allowed=".npy", fix="write it with numpy.save"
        ) from None


def load_archive(file: str, known: Iterable[str]) -> dict[str, Array]:
    """Arrays of an .npz whose key is a known name, alone or after `input:` as in golden data."""
    keys = {f"input:{name}": name for name in known} | {name: name for name in known}
    try:
        found = read_npz(file, keys)
    except UnreadableArrayError as error:
        raise InputError(
            "this file holds no arrays",
            where=file,
            got=str(error),
            allowed=".npz",
            fix="write it with numpy.savez(FILE, NAME_OF_THE_INPUT=array)",
        ) from None
    return {name: found[key] for key, name in keys.items() if key in found}


def load_table(file: str) -> Array:
    """A .csv of numbers, float64 [rows, columns]; one line of words above them is left out."""
    data = read_bytes(file, what="table")
    try:
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip() and not line.startswith("#")]
        if lines and not _is_numeric(lines[0]):
            lines = lines[1:]
        if not lines:
            raise ValueError("no rows of numbers")
        return np.loadtxt(lines, delimiter=",", ndmin=2)
    except (ValueError, MemoryError) as error:
        raise InputError(
            "this file holds no table of numbers",
            where=file,
            got=str(error),
            allowed=".csv: numbers with commas between, every row as many",
            fix="write it with numpy.savetxt(FILE, array, delimiter=',')",
        ) from None


def _is_numeric(line: str) -> bool:
    try:
        float(line.partition(",")[0])
    except ValueError:
        return False
    return True
