"""What `metagen-deploy specs` says of each shipped spec is what docs/models.md says."""

from __future__ import annotations

from pathlib import Path

from specs.document import parse_document, read_text
from specs.sources import PROOF, list_zoo


def test_every_shipped_spec_has_its_state_and_its_row(repository: Path) -> None:
    states = parse_document(read_text(PROOF), source=PROOF.name).data
    assert sorted(states) == sorted(list_zoo())
    lines = (repository / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line.replace("*", "") for line in lines if line.startswith("| `")}
    for name, state in states.items():
        for part in state.split("; "):
            assert part.split(", ")[0] in rows[name], f"{name}: {part}"
