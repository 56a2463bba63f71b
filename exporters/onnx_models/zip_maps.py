"""ZipMap, which scikit-learn's converters put behind every classifier unless they are told not to: taken away.

    probabilities [N, classes] --ZipMap--> a list of N maps {class: probability}        becomes the tensor itself

The output keeps its name; which class is which column is said in a note. Other maps are refused by name.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from specs.errors import GraphError

_DOMAIN = "ai.onnx.ml"
_MOST_NAMED = 20


def remove_zip_maps(proto: onnx.ModelProto) -> list[str]:
    """Change `proto` in place; returns a note for each output that becomes a tensor."""
    graph, notes = proto.graph, []
    outputs = {value.name: value for value in graph.output}
    for node in graph.node:
        if (node.domain, node.op_type) != (_DOMAIN, "ZipMap") or node.output[0] not in outputs:
            continue
        classes = [item for one in node.attribute for item in (*one.ints, *(text.decode() for text in one.strings))]
        named = ", ".join(map(str, classes[:_MOST_NAMED])) + (", ..." if len(classes) > _MOST_NAMED else "")
        notes.append(f"output '{node.output[0]}' is a tensor here, not a list of maps; its columns are {named}")
        shape = [None, len(classes) or None]
        kind = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
        outputs[node.output[0]].CopyFrom(kind)
        node.domain, node.op_type = "", "Identity"
        del node.attribute[:]
    return notes


def require_no_maps(path: Path, proto: onnx.ModelProto) -> None:
    """Raises GraphError: an input or output is a map, or a list of maps."""
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            inner = value.type.sequence_type.elem_type if value.type.HasField("sequence_type") else value.type
            if inner.HasField("map_type"):
                raise GraphError(
                    f"{kind} '{value.name}' is made of maps",
                    where=str(path),
                    allowed="tensors of numpy's integer, float and bool types",
                    fix="cut the graph so that its inputs and outputs are plain tensors",
                )
