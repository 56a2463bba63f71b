"""`check_bundle` in a process of its own, for a caller whose memory is already full of torch.

    parent                                              child: python -m engines.checking.apart
    with BundleChecker() as checker:
        checker.start()             --starts-->         imports what a check needs, beside the export that goes on
        checker.check(folder)       --folder-->         check_bundle(folder), events as JSON lines on stdout
    progress, report or error       <--{"progress": ...}, {"report": ...} or {"error": ...}

A crash of a native runtime in the child is a ParityError here instead of the end of the export.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, final

from specs import errors
from specs.progress import Progress
from specs.report import ParityReport
from specs.system.child_process import ROOT, make_environment


@final
class BundleChecker:
    """One child for one check. Leaving the `with` block ends it, whatever happened."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> BundleChecker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.kill()  # nothing, where it has ended
            self._worker.communicate()

    def start(self) -> None:
        """Let the child import ONNX Runtime and the rest, half a second, while the caller is busy with other things."""
        self._worker = self._worker or subprocess.Popen(
            [sys.executable, "-m", "engines.checking.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,  # `python -m` looks there first: a folder of the user's called `engines` must not be found
            env=make_environment(),
        )

    def check(self, folder: Path, *, progress: Progress) -> ParityReport:
        """As `engines.checking.parity.check_bundle`, with memory of its own."""
        self.start()
        worker = self._worker
        assert worker is not None and worker.stdin and worker.stdout and worker.stderr
        with contextlib.suppress(BrokenPipeError):  # it died while it waited: it has a status, and maybe words
            worker.stdin.write(json.dumps(str(folder.absolute())) + "\n")
            worker.stdin.flush()
        report: ParityReport | None = None
        for line in worker.stdout:
            event = json.loads(line)
            if "progress" in event:
                progress(*event["progress"])
            elif "error" in event:
                raise _rebuild_error(event["error"])
            else:
                report = ParityReport.from_json(event["report"])
        said = worker.stderr.read()
        status = worker.wait()
        if report is None:
            raise errors.ParityError(
                "the process that checks the bundle died",
                where=str(folder),
                got=f"exit status {status}; {' '.join(said.split())[-400:]}",
                fix="if it was killed, the machine is out of memory: use a machine with more, or a smaller `dims` opt",
            )
        return report


def _rebuild_error(data: dict[str, Any]) -> errors.MetagenError:
    kind = getattr(errors, data.pop("kind"))
    error = kind(data.pop("problem"), **data)
    assert isinstance(error, errors.MetagenError)
    return error


def _run_child() -> None:
    from engines.checking.parity import check_bundle
    from engines.checking.stages import import_runtimes

    def tell(**event: object) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    with contextlib.suppress(errors.MetagenError):  # the check will say what is missing
        import_runtimes()
    asked = sys.stdin.readline()
    if not asked:
        return  # the export ended without a bundle
    try:
        report = check_bundle(Path(json.loads(asked)), progress=lambda text, fraction: tell(progress=[text, fraction]))
    except errors.MetagenError as error:
        parts = {key: getattr(error, key) for key in ("problem", "where", "got", "allowed", "fix")}
        tell(error={"kind": type(error).__name__, **parts})
    else:
        tell(report=report.to_json())


if __name__ == "__main__":
    _run_child()
