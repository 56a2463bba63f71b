"""A prompt as its model was trained to read it: put into the checkpoint's chat template.

    prompt -> [{"role": "user", "content": prompt}] --template--> text, which says its own beginning and turns

The template is Jinja, rendered in `sandbox.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from engines.runtime.fields import take_field
from engines.runtime.text.sandbox import LONGEST, LONGEST_SECONDS, limit_time, make_environment
from specs.errors import BundleError, InputError, MissingDependency

_AT = "pipeline.tokenizer"


def has_chat_template(config: Mapping[str, Any]) -> bool:
    """Whether `pipeline.tokenizer` carries one."""
    return bool(config.get("chat_template"))


def render_chat(config: Mapping[str, Any], prompt: str) -> str:
    """The text of a conversation that `prompt` begins, up to where the model's answer begins.

    Raises:
        InputError: the bundle has no template, or the template does not take this prompt.
        MissingDependency: Jinja is not installed.
        BundleError: the template is no Jinja.
    """
    if not has_chat_template(config):
        raise InputError(
            "this bundle has no chat template",
            allowed="a prompt that is taken as it is",
            fix="leave out --chat",
        )
    template = take_field(config, "chat_template", str, at=_AT)
    tokens = take_field(config, "special_tokens", dict, {}, at=_AT)
    _require_jinja()
    messages = [{"role": "user", "content": prompt}]
    known = {**tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        made = make_environment().from_string(template)
    except Exception as error:  # noqa: BLE001 - also what Python says of nesting, and of numbers of many digits
        raise BundleError(
            "the chat template is no Jinja that is known here", where=_AT, got=_word(error), fix="leave out --chat"
        ) from None
    try:
        with limit_time():
            return _join(made.generate(known))
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the template does with Python's values
        late = isinstance(error, TimeoutError)
        raise InputError(
            "the chat template does not end" if late else "the chat template does not take this prompt",
            got=_word(error),
            allowed=f"{LONGEST_SECONDS:g} seconds" if late else None,
            fix="leave out --chat",
        ) from None


def _word(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:160]


def _join(pieces: Iterator[str]) -> str:
    """The text of `pieces`; InputError as soon as it is longer than any."""
    text, size = [], 0
    for piece in pieces:
        text.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise InputError(
                "the chat template makes too much of this prompt",
                got=f"more than {LONGEST} characters",
                allowed=f"at most {LONGEST}",
                fix="leave out --chat",
            )
    return "".join(text)


def _require_jinja() -> None:
    try:
        importlib.import_module("jinja2")
    except ImportError:
        raise MissingDependency(
            "a chat template needs the package 'jinja2', which is not installed",
            fix="pip install jinja2, or leave out --chat and write the turns into the prompt",
        ) from None
