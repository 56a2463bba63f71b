"""What a machine refuses and what ends a command from outside, through the real command line in its own process.

A full disk, a folder that may not be written, signals in the middle of export and build, closed pipes, and a machine
with the base installation only. Nothing is left behind, and no traceback is shown.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from metagen_deploy.cli import run_command
from tests.refusals import HAS_COMPILER, check_message, read_tree

Run = Callable[..., "subprocess.CompletedProcess[str]"]

EXPORT = ("export", "net.onnx", "-o", "new/x.bundle")
PRELUDE = """
from signal import *
from resource import *
signal(SIGINT, default_int_handler), signal(SIGHUP, SIG_DFL)
{limit}
from metagen_deploy.cli import main
main()
"""
#: A root user is denied nothing, unless these capabilities are taken away.
ALLOWED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")


@pytest.fixture
def start(here: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line in `here`; signals reach it even where pytest itself ignores them."""

    def run(*arguments: str, before: tuple[str, ...] = (), limit_bytes: int = 0) -> subprocess.Popen[str]:
        limit = f"setrlimit(RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))" if limit_bytes else ""
        return subprocess.Popen(
            [*before, sys.executable, "-c", PRELUDE.format(limit=limit), *arguments],
            cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


Start = Callable[..., "subprocess.Popen[str]"]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status, and what was said but for steps that lasted a second: which do is the machine's business."""
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said, said
    return process.returncode, re.sub(r"^.* …\n", "", said, flags=re.MULTILINE)


def test_a_full_disk_in_the_middle_of_an_export(here: Path, start: Start) -> None:
    before = read_tree(here)
    status, said = finish(start(*EXPORT, limit_bytes=2000))
    check_message(
        said,
        "the disk is full; nothing was left half-written\n"
        f"  where:   {here}/new/x.bundle\n"
        "  got:     File too large, {...} MB free\n"
        "  fix:     free some space, or write to another disk",
    )
    assert status == 1
    assert read_tree(here) == before


@pytest.mark.skipif(not HAS_COMPILER, reason="no engine without the TensorRT-RTX compiler")
def test_a_full_disk_in_the_middle_of_a_build(here: Path, start: Start) -> None:
    path = here / "net.bundle/model/model.rtx-4090-fp32.tensorrt-rtx.plan"
    path.write_bytes(b"damaged, so that it is built again")
    status, said = finish(start("build", "net.bundle", "--target", "rtx-4090", limit_bytes=5000))
    assert status == 1
    assert said.startswith("error: the disk is full; nothing was left half-written\n")
    assert not list(here.rglob("*.new"))
    assert not list(here.rglob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root is denied nothing")
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("export", "net.onnx", "-o", "locked/x.bundle"), "{here}/locked/x.bundle"),
        (("export", "net.onnx", "-o", "locked/new/x.bundle"), "{here}/locked/new/x.bundle"),
        (("build", "locked/net.onnx"), "{here}/locked/net.bundle"),
    ],
)
def test_a_folder_that_may_not_be_written(arguments: tuple[str, ...], where: str, here: Path, start: Start) -> None:
    locked = here / "locked"
    locked.mkdir()
    shutil.copy(here / "net.onnx", locked)
    locked.chmod(0o555)
    try:
        status, said = finish(start(*arguments, before=ALLOWED if os.geteuid() == 0 else ()))
        assert os.listdir(locked) == ["net.onnx"]
    finally:
        locked.chmod(0o755)
    check_message(
        said,
        "access was denied; nothing was left half-written\n"
        f"  where:   {where.format(here=here)}\n"
        "  got:     Permission denied\n"
        "  fix:     change its permissions, or choose a folder of yours",
    )
    assert status == 1


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root is denied nothing")
def test_a_bundle_that_may_not_be_written_is_checked_and_run(here: Path, start: Start) -> None:
    for path in (here / "net.bundle", *(here / "net.bundle").rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    before = read_tree(here)
    allowed = ALLOWED if os.geteuid() == 0 else ()
    for arguments in (("check", "net.bundle"), ("run", "net.bundle", "x.npz")):
        assert finish(start(*arguments, before=allowed))[0] == 0
    status, said = finish(start("build", "net.bundle", before=allowed))
    for path in (here / "net.bundle", *(here / "net.bundle").rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    message = "the bundle cannot be written to\n  where:   net.bundle\n  fix:     copy it to a folder of yours"
    check_message(said, message)
    assert status == 1
    assert read_tree(here) == before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda v: str(int(v))
)
def test_a_signal_in_the_middle_of_an_export(number: int, status: int, here: Path, start: Start) -> None:
    before = read_tree(here)
    process = start(*EXPORT)
    wait_until(lambda: any((here / "new").glob(".*/model/*.onnx")), process)
    process.send_signal(number)
    assert finish(process) == (status, "\ninterrupted, nothing was left half-written\n")
    assert read_tree(here) == before


@pytest.mark.skipif(not HAS_COMPILER, reason="no engine without the TensorRT-RTX compiler")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda v: str(int(v)))
def test_a_signal_in_the_middle_of_a_build(number: int, status: int, here: Path, start: Start) -> None:
    engine = here / "net.bundle/model/model.rtx-4090-fp32.tensorrt-rtx.plan"
    engine.write_bytes(b"damaged, so that it is built again")
    process = start("build", "net.bundle", "--target", "rtx-4090")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: bool(children.read_text()), process)
    (child,) = children.read_text().split()
    process.send_signal(number)
    assert finish(process) == (status, "\ninterrupted, nothing was left half-written\n")
    wait_until(lambda: not Path(f"/proc/{child}").exists(), None)
    assert not [path for path in here.rglob("*") if path.suffix in (".tmp", ".new")]
    assert run_command(["build", str(here / "net.bundle")]) == 0
    assert run_command(["check", str(here / "net.bundle")]) == 0


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.002)


def test_two_exports_to_one_place(here: Path, start: Start) -> None:
    """Both end well, one of them stays, and it is whole."""
    both = [start("export", "net.onnx", "-o", "new/x.bundle") for _ in range(2)]
    assert [finish(process)[0] for process in both] == [0, 0]
    assert os.listdir(here / "new") == ["x.bundle"]
    assert run_command(["check", str(here / "new/x.bundle")]) == 0


def test_what_is_written_follows_the_umask(here: Path, environment: dict[str, str]) -> None:
    for line in ("export net.onnx -o new/x.bundle", "run new/x.bundle x.npz -o new/a.json"):
        done = run_shell(f"umask 027; {METAGEN} {line}", here, environment)
        assert done.returncode == 0, done.stderr
    for path in (here / "new").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


METAGEN = f"{sys.executable} -m metagen_deploy"


def run_shell(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("targets >&-", 0, ""),
        ("targets 2>&-", 0, ""),
        ("show nothing 2>&-", 1, ""),
        (
            "targets >/dev/full",
            1,
            (
                "error: the disk is full; nothing was left half-written\n"
                "  got:     No space left on device, {...} MB free\n"
                "  fix:     free some space, or write to another disk\n"
            ),
        ),
    ],
)
def test_streams_that_are_closed(line: str, status: int, said: str, here: Path, environment: dict[str, str]) -> None:
    done = run_shell(f"{METAGEN} {line}", here, environment)
    assert re.fullmatch(".+".join(map(re.escape, said.split("{...}"))), done.stderr)
    assert done.returncode == status


@pytest.mark.parametrize("line", ["--help", "targets", "show --schema", "inspect net.bundle", "run net.bundle x.npz"])
def test_a_reader_that_has_gone(line: str, here: Path, environment: dict[str, str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "metagen_deploy", *line.split()]
    process = subprocess.Popen(command, cwd=here, env=environment, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    status, said = finish(process)
    assert status == 0
    assert "Error" not in said
    assert "Exception" not in said


def test_without_a_home_and_a_path(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metagen_deploy", "doctor"],
        cwd=here, env={"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_of_the_users_with_our_names(here: Path, environment: dict[str, str]) -> None:
    """The processes that export and build start find our packages, not what lies in the current folder."""
    script = "import sys; sys.path.pop(0); from metagen_deploy.cli import main; main()"
    for name in ("engines", "specs", "exporters"):
        (here / name).mkdir()
        (here / name / "__init__.py").write_text("raise SystemExit('not ours')")
    done = subprocess.run(
        [sys.executable, "-c", script, *EXPORT],
        cwd=here, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def base_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what `pip install metagen-deploy` brings, and nothing else."""
    folder, seen, wanted = tmp_path_factory.mktemp("site"), set(), ["numpy", "click", "pyyaml", "pydantic", "rich"]
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # a requirement of another platform or Python
            continue
        wanted += [re.split(r"[^\w.-]", line)[0].lower() for line in package.requires or () if "extra ==" not in line]
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(package.locate_file(top)))
    return folder


EXTRA = "export needs the package '{...}', which is not installed\n  fix:     pip install 'metagen-deploy[export]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--help",), ""),
        (("specs",), ""),
        (("targets",), ""),
        (("doctor",), ""),
        (("show", "image_vit_digits"), ""),
        (("show", "--schema"), ""),
        (("inspect", "net.bundle"), ""),
        (("inspect", "net.onnx"), ""),
        (("export", "image_vit_digits", "-o", "x.bundle"), EXTRA),
        (("export", "net.onnx", "-o", "x.bundle"), EXTRA),
        (("build", "net.onnx", "--target", "h200"), EXTRA),
    ],
)
def test_the_base_installation(
    arguments: tuple[str, ...], message: str, here: Path, base_site: Path, environment: dict[str, str]
) -> None:
    path = os.pathsep.join([str(base_site), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-S", "-m", "metagen_deploy", *arguments],
        cwd=here, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if message:
        check_message(done.stderr, message)
        assert done.returncode == 1
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_our_own_import_errors_are_bugs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "exporters.export", None)
    with pytest.raises(ModuleNotFoundError, match=r"exporters\.export"):
        run_command(["export", "image_vit_digits", "-o", str(tmp_path / "x.bundle")])
