"""The chat template of a checkpoint: the Jinja text that makes a conversation one text, and the tokens that it names.

    chat_template.jinja, else `chat_template` of tokenizer_config.json: a text, or a list of named ones ("default")

Nothing is rendered here: a bundle carries the text, and `run --chat` renders it in a sandbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config, read_config
from specs.errors import CheckpointError

_FILE = "chat_template.jinja"
_LONGEST = 1 << 17  # characters; published ones have up to 10 thousand


def describe_chat(folder: Folder) -> dict[str, Any]:
    """`chat_template` and `special_tokens` of a `tokenizers` entry; empty where the checkpoint has no template.

    Raises:
        CheckpointError: a template that is no text, or is longer than any.
    """
    config, older = (_read(folder.path / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    path = folder.path / _FILE
    template = config.data.get("chat_template")
    if path.is_file():
        template = path.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):
        named = (one for one in template if isinstance(one, dict) and one.get("name") == "default")
        template = next(named, {}).get("template")
    if template is None or template == "":
        return {}
    if not isinstance(template, str) or len(template) > _LONGEST:
        raise CheckpointError(
            "the checkpoint's chat template is no text, or too long",
            where=str(path if path.is_file() else config.where),
            got=repr(template)[:80],
            allowed=f"a text of at most {_LONGEST} characters",
            fix="remove it: prompts are then taken as they are",
        )
    tokens = {key: _spell(value) for key, value in {**older.data, **config.data}.items() if key.endswith("_token")}
    return {"chat_template": template, "special_tokens": {key: text for key, text in tokens.items() if text}}


def _read(path: Path) -> Config:
    """A tokenizer may name code of its own: the bundle takes its tokenizer.json, and that code is never run."""
    return read_config(path, passive=True) if path.is_file() else Config({}, str(path))


def _spell(value: object) -> str:
    """A token's text: given as it is, or with how it is stripped."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
