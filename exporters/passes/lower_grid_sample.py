"""LowerGridSample: metagen::MetagenGridSample3D -> ONNX GridSample of a volume (opset 20), for ONNX Runtime.

    GridSample(x_NCDHW, grid_NDHW3, mode="linear" | "nearest", padding_mode, align_corners)

ONNX Runtime 1.31 has the 5-D kernel on the CPU, for every mode and padding. It works channel by channel, the body on
whole rows of channels, so it is the better one for few of them only. Trilinear, [1, C, 16, 64, 64] read at as many
positions, native against body: C = 1 2.2 ms against 7.0 ms, C = 3 6.7 against 12.2, C = 32 80 against 32 (one thread);
C = 3 4.6 against 17, C = 32 47 against 29 (two threads).

TensorRT and TensorRT-RTX have GridSample for images only; they keep the body or take the plugin.
"""

from __future__ import annotations

import onnx_ir as ir

from exporters.passes.shared.graph import Builder, Namer, describe_node, list_graphs, notes_of, take_over

_MODES = {"bilinear": "linear", "nearest": "nearest"}
_SINCE = 20  # before, GridSample knew images only
_MOST_CHANNELS = 8


class LowerGridSample(ir.passes.InPlacePass):
    """Fires on MetagenGridSample3D of few channels, in any graph; the others keep their body, and the log says why."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer, notes = Namer(model), notes_of(model)
        fired = 0
        for graph in list_graphs(model):
            for node in list(graph):
                if (node.domain, node.op_type) != ("metagen", "MetagenGridSample3D"):
                    continue
                if reason := _check(node):
                    notes.log.append(f"LowerGridSample: {describe_node(node)} keeps its body: {reason}")
                    continue
                _rewrite(Builder(graph, node, namer), node)
                fired += 1
        if fired:
            notes.log.append(f"LowerGridSample: {fired} nodes became GridSample of a volume")
        return ir.passes.PassResult(model, modified=bool(fired))


def _check(node: ir.Node) -> str | None:
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) == 5 else None
    if not isinstance(channels, int):
        return "the number of its channels is not known"
    if channels > _MOST_CHANNELS:
        return f"of {channels} channels, ONNX Runtime's kernel works one by one (it pays up to {_MOST_CHANNELS})"
    return None


def _rewrite(build: Builder, node: ir.Node) -> None:
    out = build(
        "GridSample",
        *node.inputs,
        dtype=node.outputs[0].dtype,
        shape=node.outputs[0].shape,
        attributes={
            "mode": _MODES[node.attributes["mode"].as_string()],
            "padding_mode": node.attributes["padding_mode"].as_string(),
            "align_corners": node.attributes["align_corners"].as_int(),
        },
    )
    build.require_opset(_SINCE)
    build.insert_before(node)
    take_over(build.graph, [node], node, out)
