"""The documents are true: their commands run, and what they name exists.

Rule: a ```bash or ```python block is executed, in order, one temporary folder a document, with this checkout's
`metagen-deploy` on the path. What is only to be read (output, cloning, a GPU's commands) is ```console, ```text or
```yaml.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLOORS = ("metagen_deploy", "exporters", "engines", "specs")
CODE_PATH = re.compile(r"`((?:metagen_deploy|exporters|engines|specs|tests|benchmarks|examples|docs)/[\w./*-]*)`")


def list_untracked_files() -> set[str]:
    """Files of the checkout that git neither tracks nor ignores."""
    done = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs_and_leaves_no_file_behind(
    document: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    before = list_untracked_files()
    for language, code in BLOCK.findall(document.read_text(encoding="utf-8")):
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{document.name}:\n{code}\n{done.stdout}{done.stderr}"
    assert list_untracked_files() - before == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_it_names_exists(document: Path) -> None:
    named = set(CODE_PATH.findall(document.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not list(ROOT.glob(path.rstrip("/")))] == []


def read_plan(text: str) -> set[str]:
    """The paths in the picture of docs/architecture.md, where what is in a room is indented by two more than it is."""
    (picture,) = re.findall(r"^## The rooms\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    named, rooms = set(), [""]
    for line in picture.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {3,}", line.strip())[0].split()
        paths = ["/".join([*rooms[1 : depth + 1], name.rstrip("/")]) for name in names]
        rooms[depth + 1 :] = [names[0].rstrip("/")]
        named.update(paths)
    return named


def list_rooms() -> set[str]:
    """Every folder of the packages that holds Python."""
    modules = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    return {path.parent.relative_to(ROOT).as_posix() for path in modules}


def test_the_plan_of_the_rooms_is_true() -> None:
    plan = read_plan((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert [path for path in sorted(plan) if not (ROOT / path).exists()] == []
    assert sorted(list_rooms() - plan) == []


def test_a_plan_that_forgets_a_room_is_noticed() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert list_rooms() - read_plan(text.replace("    int8/ shared/ ", "    int8/ ")) == {"exporters/passes/shared"}
    assert "specs/cellar" in read_plan(text.replace("  zoo/  ", "  cellar/  "))
