"""A key that a config does not have is what the library's config class puts there, not what we would guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from exporters.checkpoints import IMPORTERS, read_spec

#: Whole models of several configs: the parts of their default configs do not go together.
APART = ("llava", "musicgen")
KINDS = [kind for one in IMPORTERS for kind in one.model_types if kind in hf.CONFIG_MAPPING and kind not in APART]


def read(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What a folder of this config alone means."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec(folder).model_dump(exclude={"name", "description", "weights"})
    for part in spec["components"].values():  # llama's config says the width of a head that it would have anyway
        if "head_dim" in part and part["head_dim"] is None:
            part["head_dim"] = part["hidden_size"] // part["num_heads"]
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_absent_keys_are_the_library_s_defaults(kind: str, tmp_path: Path) -> None:
    """All keys absent, and each by itself: a default may hang on another key."""
    full = json.loads(hf.CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    wanted = read(tmp_path / "m", full)
    few = {"model_type": kind, "architectures": full.get("architectures")}
    cases = {"all": few, **{key: {k: v for k, v in full.items() if k != key} for key in full if key != "model_type"}}
    for name, config in cases.items():
        (tmp_path / name).mkdir()
        assert read(tmp_path / name / "m", config) == wanted, name


def test_one_guess_would_be_noticed(tmp_path: Path) -> None:
    full = json.loads(hf.CONFIG_MAPPING["gemma2"]().to_json_string(use_diff=False))
    assert read(tmp_path / "m", {**full, "num_key_value_heads": None}) != read(tmp_path / "n", full)
