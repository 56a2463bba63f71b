"""What pydantic found, in the words of someone who wrote YAML: one `SpecError` with file, line and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from specs.components import COMPONENTS
from specs.document import Document, name_type
from specs.errors import SpecError, name_nearest
from specs.schema import (
    IMPLEMENTED_PRECISIONS,
    CalibrationSpec,
    Dim,
    EvaluationSpec,
    ModalitySpec,
    ParitySpec,
    Spec,
    TokenizerSpec,
    WeightsSpec,
)

#: Keys at the top of a file.
ROOT_KEYS = (*Spec.model_fields, "variants")

_SECTIONS: dict[str, type[BaseModel]] = {
    "modality": ModalitySpec,
    "weights": WeightsSpec,
    "calibration": CalibrationSpec,
    "evaluation": EvaluationSpec,
    "parity": ParitySpec,
    "dims": Dim,
    "tokenizers": TokenizerSpec,
}

#: pydantic's error type -> what is allowed
_ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} item",
    "string_pattern_mismatch": "a name that matches {pattern}",
}


def word_errors(error: ValidationError, document: Document, data: Mapping[str, Any], at: tuple[str, ...]) -> SpecError:
    """The problem to tell of: an unknown key before all else (it explains a missing one), then by line.

    Args:
        data: what was validated, before conversion.
        at: where `data` stands in the document.
    """
    found = [(e["type"] != "extra_forbidden", _locate(e, document, data, at), e) for e in error.errors()]
    _, line, first = min(found, key=lambda item: item[:2])
    return _word(dict(first), f"{document.source}:{line}", data, at)


def _locate(error: Any, document: Document, data: Mapping[str, Any], at: tuple[str, ...]) -> int:
    path = (*at, *_strip(error["loc"]))
    value = _find(data, _strip(error["loc"]))
    if error["type"] == "value_error" and isinstance(value, dict):  # of a whole mapping: the last key it talks of
        words = re.findall(r"\w+", error["msg"])
        return max([_line(document, (*path, word)) for word in words if word in value] or [_line(document, path)])
    return _line(document, path)


def _line(document: Document, path: tuple[str | int, ...]) -> int:
    return int(document.locate(path).rpartition(":")[2])


def _strip(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return loc[:-1] if loc and loc[-1] == "[key]" else loc


def _find(data: object, path: tuple[str | int, ...]) -> object:
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, tuple) and isinstance(key, int) and key < len(data) else None
    return data


def _word(error: dict[str, Any], where: str, data: Mapping[str, Any], at: tuple[str, ...]) -> SpecError:
    kind, loc, context = error["type"], _strip(error["loc"]), error.get("ctx", {})
    owner, name = _join((*at, *loc[:-1])), _join((*at, *loc))
    key = str(loc[-1]) if loc else ""
    if error["loc"] != loc:
        return SpecError(
            f"'{key}' cannot be a name in {owner}",
            where=where,
            allowed=_ALLOWED[kind].format(**context),
            fix="rename it",
        )
    if kind == "extra_forbidden":
        return SpecError(
            f"unknown key '{key}' in {owner}",
            where=where,
            allowed=name_nearest(key, _list_keys((*at, *loc[:-1]), data)),
            fix="rename the key to one of these, or remove it",
        )
    if kind == "missing":
        return SpecError(
            f"'{key}' is missing{' in ' + owner if owner else ''}",
            where=where,
            allowed=_describe_field((*at, *loc), data),
            fix=f"add the key '{key}'",
        )
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(context["expected"]))
        if owner == "precision":
            words = list(IMPLEMENTED_PRECISIONS)  # the others are reserved
        return SpecError(
            f"{name} cannot be {name_type(error['input'])}",
            where=where,
            allowed=name_nearest(str(error["input"]), words),
            fix="use one of these",
        )
    if kind == "value_error":
        return SpecError(f"{name}: {context['error']}", where=where, fix="change one of the values")
    description = _describe_field((*at, *loc), data)
    allowed = _ALLOWED.get(kind, error["msg"]).format(**context)
    return SpecError(
        f"{name} cannot be {name_type(error['input'])}",
        where=where,
        allowed=f"{allowed} ({description})" if description else allowed,
        fix=_suggest(kind, name, error["input"]),
    )


def _join(path: tuple[str | int, ...]) -> str:
    """("image_mean", 0) -> "image_mean[0]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _suggest(kind: str, name: str, value: object) -> str:
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+", value):
        return f"remove the quotes around {value}"
    if kind == "string_type" and isinstance(value, int | float):
        return f"put {str(value).lower()} in quotes"
    if kind == "tuple_type":
        return f"write [{value}]" if isinstance(value, str) else "write a list: [..., ...]"
    if kind == "dict_type" and name == "precision" and isinstance(value, str):
        return f"write {{default: {value}}}"
    return f"correct {name}"


def _find_model(path: tuple[str | int, ...], data: Mapping[str, Any]) -> type[BaseModel]:
    """The model that describes the mapping at `path`."""
    if not path:
        return Spec
    if path[0] == "components":
        return COMPONENTS[str(data["kind"])]
    return _SECTIONS[str(path[0])]


def _list_keys(path: tuple[str | int, ...], data: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_find_model(path, data).model_fields) if path else ROOT_KEYS


def _describe_field(path: tuple[str | int, ...], data: Mapping[str, Any]) -> str | None:
    """What the schema says about a key, when it says anything."""
    if path[0] in ("precision", "targets", "labels"):
        return Spec.model_fields[str(path[0])].description
    if path[0] in ("components", "dims", "tokenizers"):
        owner, rest = path[:2], path[2:]
    else:
        owner, rest = path[:1], path[1:]
    model, key = (_find_model(owner, data), rest[0]) if rest else (Spec, path[0])
    field = model.model_fields.get(str(key))
    return field.description if field else None
