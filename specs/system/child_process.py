"""How a process of this project starts another one of its own modules."""

from __future__ import annotations

import os
from pathlib import Path

#: The folder that holds the packages, so that a checkout that is not installed works too.
ROOT = Path(__file__).resolve().parents[2]


def make_environment() -> dict[str, str]:
    """The environment of a child that runs `python -m ...` of one of this project's modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
