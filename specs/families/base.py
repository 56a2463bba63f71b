"""What a family is: a combination of components that this tool knows how to drive.

A family decides which graphs there are, which dynamic dimensions they have, and how a host uses them. Nothing here
needs torch; `specs/handlers` has the torch modules of each family, `engines/runtime/pipelines` its host loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from specs.components import Activations, Component, PictureComponent
from specs.components.vision.picture import PIXEL_DIMS
from specs.schema import Dim, Spec, TensorSpec

Components = Mapping[str, Component]
Roles = Mapping[str, str]  # role -> the name of the component that plays it

BATCH = Dim(min=1, opt=1, max=8)


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph of a bundle: its unique name, the component it belongs to, and what goes in and comes out.

    Args:
        keep_float32: (pattern of module paths, reason): what stays float32 in a float16 graph, beside what the passes
            find themselves.
        unquantised: (pattern of module paths, reason): products that an int8 graph leaves in its high precision.
    """

    name: str
    component: str
    file_stem: str  # "model", or "prefill" and "decode"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    keep_float32: tuple[tuple[str, str], ...] = ()
    unquantised: tuple[tuple[str, str], ...] = ()

    def keep(self, pattern: str, reason: str) -> GraphSpec:
        """The same graph, whose modules of these paths stay float32."""
        return replace(self, keep_float32=(*self.keep_float32, (pattern, reason)))

    def leave(self, *patterns: str, reason: str) -> GraphSpec:
        """The same graph, whose modules of these paths are not quantised."""
        return replace(self, unquantised=(*self.unquantised, *((pattern, reason) for pattern in patterns)))


class Family(ABC):
    """One combination of component kinds, by role; and the dims such a spec has, with what they are when not given."""

    kind: ClassVar[str]  # names a handler, and a pipeline of the runtime
    title: ClassVar[str]
    roles: ClassVar[Mapping[str, tuple[str, ...]]]  # role -> the kinds that can play it
    optional: ClassVar[frozenset[str]] = frozenset()  # roles that a spec may leave empty
    dims: ClassVar[Mapping[str, Dim]]
    architectures: ClassVar[tuple[str, ...]] = ("transformer", "hybrid")
    objectives: ClassVar[tuple[str, ...]]

    def list_dims(self, components: Components) -> Mapping[str, Dim]:
        """The dims that these components have: those of raw pictures where a graph resizes them.

        Fewer than `dims` where some belong to parts that may be absent.
        """
        shapes = [one.raw_shape for one in components.values() if isinstance(one, PictureComponent)]
        named = [name for shape in shapes if shape for name in shape if isinstance(name, str)]
        bounds = {name: PIXEL_DIMS[name] for name in named}
        return {**self.dims, **{name: Dim(min=low, opt=opt, max=high) for name, (low, opt, high) in bounds.items()}}

    def assign_roles(self, components: Components) -> Roles | None:
        """role -> component's name, when these components and no others fill the family's roles.

        A component called like a role plays it, if it can; the others follow by what they can play, which must leave
        one choice. So a component's name matters only where two roles take the same kind.
        """
        roles: dict[str, str] = {}
        left = dict(components)
        for role in self.roles:
            if role in left and self.can_play(role, left[role]):
                del left[role]
                roles[role] = role
        for role in self.roles:
            if role in roles:
                continue
            able = [name for name, component in left.items() if self.can_play(role, component)]
            if len(able) == 1:
                roles[role] = able[0]
                del left[able[0]]
            elif able or role not in self.optional:
                return None
        if left or not self.is_whole(roles):
            return None
        return {role: roles[role] for role in self.roles if role in roles}

    @abstractmethod
    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        """Every graph, in the order in which they are exported."""

    def can_play(self, role: str, component: Component) -> bool:
        """Whether a component can play a role: by its kind, and in a subclass by what it ends in."""
        return component.kind in self.roles[role]

    def is_whole(self, roles: Roles) -> bool:
        """Whether these roles make a model together, where optional ones need each other."""
        return True

    def check(self, spec: Spec, roles: Roles) -> None:  # noqa: B027 - most families have nothing to refuse
        """Refuse sizes of different parts that contradict each other.

        Raises:
            SpecError: its `where` is a key below the spec, e.g. `components.fusion.projection_size`.
        """

    def count_parameters(self, components: Components, roles: Roles) -> dict[str, int]:
        """Trainable parameters by component, tied tensors counted once."""
        return {name: component.count_parameters() for name, component in components.items()}

    def count_macs(self, components: Components, roles: Roles, tokens: int) -> dict[str, int]:
        """Multiply-accumulates by component of one forward of one sample; `tokens` of text without a fixed length."""
        return {name: component.count_macs(tokens) for name, component in components.items()}

    def count_activations(
        self, components: Components, roles: Roles, sizes: Mapping[str, int]
    ) -> dict[str, Activations]:
        """What a forward of each component holds when the spec's dims have these sizes."""
        return {name: component.count_activations(sizes) for name, component in components.items()}


def make_float(name: str, *shape: int | str, low: float = -1.0, high: float = 1.0) -> TensorSpec:
    """A float32 tensor."""
    return TensorSpec(name=name, dtype="float32", shape=shape, low=low, high=high)


def make_ids(name: str, *shape: int | str, vocab_size: int) -> TensorSpec:
    """Token ids below `vocab_size`, int64."""
    return TensorSpec(name=name, dtype="int64", shape=shape, low=0, high=vocab_size)


def make_lengths(name: str = "lengths") -> TensorSpec:
    """How many elements of each row are valid, int64 [batch]."""
    return TensorSpec(name=name, dtype="int64", shape=("batch",), low=1, high=2)


def make_model_graph(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    """The graph of a component that has one."""
    return GraphSpec(name=name, component=name, file_stem="model", inputs=inputs, outputs=outputs)
