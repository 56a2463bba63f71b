"""KeepPlugins: leave the nodes that a TensorRT plugin can run as they are, where the others get their bodies.

    metagen::MetagenGridSample3D, body attached  ->  metagen.plugin::MetagenGridSample3D, no body

A graph with such nodes is written beside the one with bodies, and built only where a plugin library is at hand. The
domain is the plugin's namespace (TensorRT looks there from 10.10 on; the attributes say it to older parsers), and
keeps a parser from taking a function of the same name instead.

A plugin computes positions in float32 whatever the type of its volume: `HALF_PORTS` says which of its inputs and
outputs may be half precision, and for all of them the engine's plugin has the same rule. The plugins of a decode step
stand in for many nodes (`fuse_step`); here is what they have in common with those that stand in for one.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import list_graphs, notes_of

PLUGIN_DOMAIN = "metagen.plugin"
PLUGIN_VERSION = 1
#: Ops of the portable graph that a plugin runs as they are.
_KEPT = frozenset({"MetagenGridSample3D"})

#: Op with a plugin -> the inputs and the outputs that take half precision; the others stay float32.
HALF_PORTS: dict[str, tuple[frozenset[int], frozenset[int]]] = {
    "MetagenGridSample3D": (frozenset({0}), frozenset({0})),
    "MetagenStepLinear": (frozenset(range(8)), frozenset(range(3))),  # all that it may have
    "MetagenStepAttention": (frozenset({0, 1, 2}), frozenset({0})),  # caches and angles as they come
}
#: Op with a plugin -> the inputs that are positions: what leads up to them stays float32 too.
POSITION_INPUTS: dict[str, frozenset[int]] = {
    "MetagenGridSample3D": frozenset({1}),
    "MetagenStepLinear": frozenset(),
    "MetagenStepAttention": frozenset({6, 7}),  # cosines and sines of positions
}


def has_plugin_ops(model: ir.Model) -> bool:
    """Whether this pass would change anything."""
    return any(_is_wanted(node) for graph in list_graphs(model) for node in graph)


def is_plugin(node: ir.Node) -> bool:
    """Whether this pass made it."""
    return node.domain == PLUGIN_DOMAIN


class KeepPlugins(ir.passes.InPlacePass):
    """Fires on every op of the portable graph that a plugin runs, in any graph; before bodies are inlined."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        kept: dict[str, int] = {}
        for graph in list_graphs(model):
            for node in graph:
                if _is_wanted(node):
                    _keep(node)
                    kept[node.op_type] = kept.get(node.op_type, 0) + 1
        if kept:
            model.opset_imports[PLUGIN_DOMAIN] = PLUGIN_VERSION
            log = notes_of(model).log
            log.extend(f"KeepPlugins: {count} nodes {op} are left to a plugin" for op, count in kept.items())
        return ir.passes.PassResult(model, modified=bool(kept))


def mark_plugin(node: ir.Node) -> None:
    """Say to every parser whose node this is: the attributes by which TensorRT looks its plugins up."""
    node.domain, node.overload = PLUGIN_DOMAIN, ""
    node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(PLUGIN_VERSION))
    node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", PLUGIN_DOMAIN)


def _is_wanted(node: ir.Node) -> bool:
    return node.domain == "metagen" and node.op_type in _KEPT


def _keep(node: ir.Node) -> None:
    mark_plugin(node)
    first, out = node.inputs[0], node.outputs[0]
    if out.type is None and first is not None:
        out.type = first.type
