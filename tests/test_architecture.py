"""The guards: who may import whom, what is shipped, and what a file must look like."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("metagen_deploy", "exporters", "engines", "specs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
LONGEST_FILE_LINES = 400
LONGEST_FUNCTION_LINES = 60


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def list_modules_after(statement: str, environment: dict[str, str], tmp_path: Path) -> set[str]:
    """The top-level modules in a fresh interpreter once `statement` has run."""
    code = f"""
import sys
before = set(sys.modules)
{statement}
print(*{{module.split(".")[0] for module in set(sys.modules) - before}}, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_import_contracts_hold(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_module)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert text.count("\n") <= LONGEST_FILE_LINES, f"{path} is too long to hold one idea"
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION_LINES]
    assert long == [], f"{path} has functions that do more than one thing"


def test_error_tree_is_drawn_in_its_docstring() -> None:
    from specs import errors

    drawn = errors.__doc__ or ""
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert not [name for name in tree if name not in drawn]


#: Where an error is worded by a caller, who says what to do.
WORDED_ELSEWHERE = {"specs.errors"}


@pytest.mark.parametrize("path", SOURCES, ids=name_module)
def test_every_error_says_what_to_do(path: Path) -> None:
    """A `MetagenError` is made with a `fix`, and not with an empty one."""
    from specs import errors

    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MetagenError)
    }
    if name_module(path) in WORDED_ELSEWHERE:
        return
    without = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not kinds & {getattr(node.func, "id", ""), getattr(node.func, "attr", "")}:
            continue
        values = [value for keyword in node.keywords if keyword.arg == "fix" for value in list_values(keyword.value)]
        if not values or any(isinstance(value, ast.Constant) and not value.value for value in values):
            without.append(f"{path}:{node.lineno}")
    assert not without, "say what to do: fix=..."


def list_values(expression: ast.expr) -> list[ast.expr]:
    """What an expression may end in: both branches of a condition, the last part of an `or`."""
    if isinstance(expression, ast.IfExp):
        return [*list_values(expression.body), *list_values(expression.orelse)]
    return list_values(expression.values[-1]) if isinstance(expression, ast.BoolOp) else [expression]


def test_package_imports_nothing_heavy(environment: dict[str, str], tmp_path: Path) -> None:
    loaded = list_modules_after("import metagen_deploy", environment, tmp_path)
    assert loaded - sys.stdlib_module_names == {"metagen_deploy"}


def test_help_imports_click_alone(environment: dict[str, str], tmp_path: Path) -> None:
    statement = "from metagen_deploy.cli import run_command\nassert run_command(['--help']) == 0"
    loaded = list_modules_after(statement, environment, tmp_path)
    assert loaded - sys.stdlib_module_names <= {"metagen_deploy", "specs", "click", "colorama"}


def test_runtime_imports_numpy_alone(environment: dict[str, str], tmp_path: Path) -> None:
    loaded = list_modules_after("import engines.runtime", environment, tmp_path)
    assert loaded - sys.stdlib_module_names <= {"engines", "specs", "numpy"}


def test_wheel_holds_the_four_packages_and_their_data(environment: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    folders = {name.split("/")[0] for name in shipped}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == set(PACKAGES)
    data = [path for folder in ("specs/zoo", "specs/targets") for path in (ROOT / folder).rglob("*") if path.is_file()]
    needed = {path.relative_to(ROOT).as_posix() for path in (*SOURCES, *data) if "__pycache__" not in path.parts}
    assert needed <= shipped
    assert any(name.startswith("specs/zoo/weights/") for name in shipped)
    assert "specs/targets/cpu.yaml" in shipped


def test_dockerfile_uses_the_containers_of_the_targets() -> None:
    from specs.targets import load_target

    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG TENSORRT_IMAGE={load_target('h200@trt10.13').container}\n" in text
    assert f"ARG JETSON_BASE={load_target('jetson-orin-nx-16gb@jp62').container}\n" in text


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "make test"
