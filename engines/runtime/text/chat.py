"""A prompt as its model was trained to read it: put into the checkpoint's chat template.

    prompt -> [{"role": "user", "content": prompt}] --template--> text, which says its own beginning and turns

The template is Jinja, rendered by the package of that name in its sandbox for untrusted text, with what transformers'
`apply_chat_template` gives it: `messages`, `add_generation_prompt`, the special tokens, `raise_exception`,
`strftime_now`, `tojson` without HTML escapes, loop controls and `{% generation %}`.
"""

from __future__ import annotations

import datetime
import importlib
import json
from collections.abc import Mapping
from typing import Any

from engines.runtime.fields import take_field
from specs.errors import BundleError, InputError, MissingDependency

_AT = "pipeline.tokenizer"
_LONGEST = 1 << 24  # characters; a template may repeat what it is given


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
    jinja = _import_jinja()
    try:
        made = _make_environment().from_string(template)
    except jinja.TemplateError as error:
        raise BundleError(
            "the chat template is no Jinja that is known here", where=_AT, got=str(error)[:160], fix="leave out --chat"
        ) from None
    messages = [{"role": "user", "content": prompt}]
    try:
        text: str = made.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens)
    except (jinja.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise InputError(
            "the chat template does not take this prompt", got=str(error)[:160], fix="leave out --chat"
        ) from None
    if len(text) > _LONGEST:
        raise InputError(
            "the chat template makes too much of this prompt",
            got=f"{len(text)} characters",
            allowed=f"at most {_LONGEST}",
            fix="leave out --chat",
        )
    return text


def _import_jinja() -> Any:
    try:
        return importlib.import_module("jinja2")
    except ImportError:
        raise MissingDependency(
            "a chat template needs the package 'jinja2', which is not installed",
            fix="pip install jinja2, or leave out --chat and write the turns into the prompt",
        ) from None


def _make_environment() -> Any:
    """Jinja as transformers sets it up: nothing can be changed, and no attribute of Python reached."""
    sandbox = importlib.import_module("jinja2.sandbox")
    extensions = importlib.import_module("jinja2.ext")

    class Generation(extensions.Extension):  # type: ignore[name-defined,misc]
        """`{% generation %}` marks what an assistant said, for training; the text is what stands in it."""

        tags = {"generation"}  # noqa: RUF012 - as the package wants it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise _import_jinja().TemplateError(message)

    def spell_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, extensions.loopcontrols]
    )
    environment.filters["tojson"] = spell_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().astimezone().strftime(pattern)
    return environment
