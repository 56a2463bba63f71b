"""The JSON Schema of a spec's YAML, for editors: completion and a first check while typing.

It says what types say. What must hold between parts (heads that divide, dims of a family) is for `consistency.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Field, TypeAdapter

from specs.components import COMPONENTS
from specs.schema import IMPLEMENTED_PRECISIONS, Spec


def make_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the whole file, with components as a union told apart by `kind`, and `variants`."""
    schema = Spec.model_json_schema()
    definitions = schema["$defs"]
    # made from the table, which no type checker can follow
    union: Any = Annotated[Union[tuple(dict.fromkeys(COMPONENTS.values()))], Field(discriminator="kind")]  # noqa: UP007
    component = TypeAdapter(union).json_schema(ref_template="#/$defs/{model}")
    definitions.update(component.pop("$defs"))
    definitions.pop("Component", None)
    definitions["AnyComponent"] = component
    definitions["VariantOfComponent"] = _make_override(definitions)
    properties = schema["properties"]
    properties["components"] = {
        "description": "the parts of the model, by a name of yours",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"$ref": "#/$defs/AnyComponent"},
    }
    properties["precision"] = {"type": "object", "description": properties["precision"]["description"]}
    properties["precision"]["additionalProperties"] = {"enum": list(IMPLEMENTED_PRECISIONS)}
    properties["variants"] = {
        "description": "sizes by variant and component; `dims` and `calibration` may be overridden too",
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {
                "dims": {"type": "object", "additionalProperties": _relax(definitions["Dim"])},
                "calibration": _relax(definitions["CalibrationSpec"]),
            },
            "additionalProperties": {"$ref": "#/$defs/VariantOfComponent"},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "metagen-deploy spec",
        "description": "One deployable model.",
    }


def _relax(definition: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with nothing required and no defaults: an override."""
    return {key: value for key, value in definition.items() if key != "required"}


def _make_override(definitions: dict[str, Any]) -> dict[str, Any]:
    """Any component's options but those that are structure."""
    kinds = {kind.__name__: kind for kind in COMPONENTS.values()}
    options = []
    for name, kind in kinds.items():
        definition = _relax(definitions[name])
        definition["properties"] = {k: v for k, v in definition["properties"].items() if k not in kind.STRUCTURE}
        options.append(definition)
    return {"anyOf": options}
