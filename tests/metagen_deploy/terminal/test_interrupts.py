"""Signals that fall where they are easily lost: into an import, a bare `except:`, a cleaning up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metagen_deploy.terminal.interrupts import Interrupted, disarm

START = """
import os, signal, sys, time
from metagen_deploy.terminal.interrupts import Interrupted, Interrupter, disarm
signal.signal(signal.SIGINT, signal.default_int_handler)

def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)

try:
    with Interrupter():
        try:
            {body}
        except Interrupted as error:
            disarm()
            print("ended by", error.number)
            time.sleep(0.3)
    send()
    print("alive")
finally:
    sys.stdout.flush()
"""
SWALLOWED = """
            try:
                send()
                time.sleep(9)
            except:
                print("swallowed")
            time.sleep(9)
            print("never")
"""
CLEANED = """
            try:
                send()
                time.sleep(9)
            finally:
                send(signal.SIGINT)
                time.sleep(0.4)
                print("cleaned")
"""
FINALISED = """
            class Slow:
                def __del__(self):
                    send()
                    time.sleep(0.2)
                    print("not here")
            Slow()
            print("lost")
            time.sleep(9)
            print("never")
"""
IMPORTED = """
            import slow
            time.sleep(9)
            print("never")
"""
SLOW = """
import os, signal, time
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.4)
{more}
print("imported")
"""


@pytest.mark.parametrize(
    ("body", "more", "lines"),
    [
        (SWALLOWED, "", ["swallowed", "ended by 15", "alive"]),
        (FINALISED, "", ["lost", "ended by 15", "alive"]),
        (CLEANED, "", ["cleaned", "ended by 15", "alive"]),
        (IMPORTED, "", ["imported", "ended by 15", "alive"]),
        (IMPORTED, "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", ["ended by 15", "alive"]),
        ("pass", "", []),
    ],
    ids=["swallowed", "in a finaliser", "cleaning up", "import", "a second one in an import", "none came"],
)
def test_a_signal_comes_through(
    body: str, more: str, lines: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    """After it, further ones are ignored; where none came, the next one ends the process as it does any other."""
    (tmp_path / "slow.py").write_text(SLOW.format(more=more))
    (tmp_path / "start.py").write_text(START.format(body=body.strip()))
    ran = subprocess.run(
        [sys.executable, "start.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.split("\n") == [*lines, ""], ran.stderr
    assert ran.returncode == (0 if lines else -15)
    assert not ran.stderr


def test_a_signal_at_the_moment_of_disarming_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def set_timer(which: int, seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 1:  # what was due is delivered by the call itself
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(signal, "setitimer", set_timer)
    disarm()
    assert asked == [0, 0]


LINGERING = """
import atexit, sys, time
from metagen_deploy import cli

def stop(arguments):
    if {interrupted}:
        raise KeyboardInterrupt
    print("done", end="")
    return 0

cli._invoke = stop
atexit.register(print, "taken apart")
cli.main()
"""


@pytest.mark.parametrize(
    ("interrupted", "status", "said"), [(True, 130, ""), (False, 0, "donetaken apart\n")], ids=["interrupted", "done"]
)
def test_an_interrupted_command_does_not_wait_for_python_to_end(
    interrupted: bool, status: int, said: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """With torch loaded that takes seconds, and everything of a user's has been cleaned up by then."""
    code = LINGERING.format(interrupted=interrupted)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (status, said)
    assert ran.stderr.strip() == ("interrupted, nothing was left half-written" if interrupted else "")
