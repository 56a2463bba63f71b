"""Ctrl-C and its kin as one exception that comes through, whatever code it falls into.

    signal ──▶ modules are being imported?  wait until they are: a compiled package that is half imported crashes
           ──▶ raise Interrupted ──▶ lost in a library's bare `except:`, or in a finaliser?  raise it once more

While it is on its way out, further signals are ignored: a second Ctrl-C must not interrupt the cleaning up. A second
one during an import is a user who waits no longer.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import final

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_AGAIN_S = 0.1
_RAISE_AGAIN_S = 1.0  # longer than frames and objects take to go away, in whose finalisers it is not seen coming out
_IMPORT_LASTS_S = 10.0  # at most: what imports for longer is a user's own file that does not end
_IMPORTERS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


@final
class Interrupted(KeyboardInterrupt):
    """A signal that ends the command: everything on the way out is cleaned up, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@final
class Interrupter:
    """Within it, an ending signal raises `Interrupted` in the main thread, until that has arrived at a handler."""

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal that came
        self._waited_s = 0.0

    def __enter__(self) -> None:
        """Signals that whoever started us ignores stay ignored: `nohup` and background jobs mean it."""
        sys.unraisablehook = _report_unraisable
        signal.signal(signal.SIGALRM, self._look_again)
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The command has ended: nothing more is raised, and where no signal came the next one ends the process."""
        disarm()
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) == self._receive:
                signal.signal(number, signal.SIG_DFL if self._number is None else signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            self._waited_s = _IMPORT_LASTS_S
        else:
            self._number = number
        self._raise_where_it_may_be(frame)

    def _look_again(self, number: int, frame: FrameType | None) -> None:
        self._waited_s += _LOOK_AGAIN_S
        self._raise_where_it_may_be(frame)

    def _raise_where_it_may_be(self, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
        if _is_on_its_way_out(sys.exc_info()[1]):
            return
        if self._waited_s < _IMPORT_LASTS_S and _is_importing(frame):
            return
        assert self._number is not None
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_S)
        raise Interrupted(self._number)


def disarm() -> None:
    """`Interrupted` has arrived at its handler, and is not raised again."""
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:  # the time was up at this very moment
        signal.setitimer(signal.ITIMER_REAL, 0)


def _report_unraisable(problem: sys.UnraisableHookArgs) -> None:
    """Python's report of what a finaliser raised; `Interrupted` that was lost in one is raised again, and no news."""
    if not isinstance(problem.exc_value, Interrupted):
        sys.__unraisablehook__(problem)


def _is_on_its_way_out(error: BaseException | None) -> bool:
    """Whether what runs now is a `finally`, an `__exit__` or a handler that `Interrupted` passes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Interrupted):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTERS:
            return True
        frame = frame.f_back
    return False
