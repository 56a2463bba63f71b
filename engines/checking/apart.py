"""`check_bundle` in a process of its own, for a caller whose memory is already full of torch.

    parent                                              child: python -m engines.checking.apart FOLDER
    check_bundle_apart(folder)  --starts-->             check_bundle(folder), events as JSON lines on stdout
    progress, report or error   <--{"progress": ...}, {"report": ...} or {"error": ...}

A crash of a native runtime in the child is a ParityError here instead of the end of the export.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from specs import errors
from specs.child_process import ROOT, make_environment
from specs.progress import Progress
from specs.report import ParityReport


def check_bundle_apart(folder: Path, *, progress: Progress) -> ParityReport:
    """As `engines.checking.parity.check_bundle`, with memory of its own."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "engines.checking.apart", str(folder.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,  # `python -m` looks there first: a folder of the user's called `engines` must not be found
        env=make_environment(),
    )
    report: ParityReport | None = None
    try:
        assert worker.stdout is not None and worker.stderr is not None
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
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()
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


def _run_child(folder: Path) -> None:
    # Polygraphy asks of every array whether it is a torch tensor, and imports torch to find out: 1.5 s and 200 MB
    # that nothing here needs.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from engines.checking.parity import check_bundle

    def tell(**event: object) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    try:
        report = check_bundle(folder, progress=lambda text, fraction: tell(progress=[text, fraction]))
    except errors.MetagenError as error:
        parts = {key: getattr(error, key) for key in ("problem", "where", "got", "allowed", "fix")}
        tell(error={"kind": type(error).__name__, **parts})
    else:
        tell(report=report.to_json())


if __name__ == "__main__":
    _run_child(Path(sys.argv[1]))
