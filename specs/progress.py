"""How a long step says where it stands, on every floor. Standard library only.

`Progress` is called with what is happening and the share that is done (None when it is not known); `metagen_deploy`
shows it, a library user passes what suits them.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, "float | None"], None]


def ignore_progress(message: str, fraction: float | None) -> None:
    """For callers that nobody watches."""
