"""What a spec's components add up to: its family, its graphs with their inputs and outputs, and its size.

Nothing here needs torch, so that `show` and the target check run on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from specs.components import Activations, Component
from specs.errors import SpecError
from specs.families import FAMILIES, Family, GraphSpec
from specs.families.base import Roles
from specs.schema import Spec

__all__ = [
    "GraphSpec",
    "count_activations",
    "count_macs",
    "count_parameters",
    "find_family",
    "list_graphs",
    "name_roles",
]


def find_family(components: Mapping[str, Component]) -> Family:
    """The family whose roles these components fill.

    Raises:
        SpecError: no family has this combination; lists those there are.
    """
    return _match(components)[0]


def name_roles(spec: Spec) -> Roles:
    """role -> the name of the component that plays it; roles that nothing plays are absent."""
    return _match(spec.components)[1]


def list_graphs(spec: Spec) -> tuple[GraphSpec, ...]:
    """Every graph that `spec` becomes, in the order in which they are exported."""
    family, roles = _match(spec.components)
    return family.list_graphs(spec.components, roles)


def count_parameters(spec: Spec) -> dict[str, int]:
    """Trainable parameters by component, tied tensors counted once."""
    family, roles = _match(spec.components)
    return family.count_parameters(spec.components, roles)


def count_macs(spec: Spec, *, tokens: int = 128) -> dict[str, int]:
    """Multiply-accumulates by component of one forward of one sample; `tokens` of text without a fixed length."""
    family, roles = _match(spec.components)
    return family.count_macs(spec.components, roles, tokens)


def count_activations(spec: Spec, sizes: Mapping[str, int]) -> dict[str, Activations]:
    """What a forward of each component holds when the dims have these sizes."""
    family, roles = _match(spec.components)
    return family.count_activations(spec.components, roles, sizes)


def _match(components: Mapping[str, Component]) -> tuple[Family, Roles]:
    for family in FAMILIES:
        roles = family.assign_roles(components)
        if roles is not None:
            return family, roles
    raise SpecError(
        f"no model is made of these components: {', '.join(sorted(c.kind for c in components.values()))}",
        allowed="; ".join(f"{family.title} ({_spell_roles(family)})" for family in FAMILIES),
        fix="add, remove or change components until they are one of these",
    )


def _spell_roles(family: Family) -> str:
    roles = (
        f"[{' or '.join(kinds)}]" if role in family.optional else " or ".join(kinds)
        for role, kinds in family.roles.items()
    )
    return " + ".join(roles)
