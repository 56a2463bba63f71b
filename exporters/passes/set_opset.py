"""SetOpset: bring the standard domain into the range that a target reads.

A model inside the range is left alone. Upwards the work is onnx's own converter (to 18) and onnxscript's (from 18).
Downwards neither helps, so each node is compared with its schema at the lower opset:

    same schema version                         -> nothing to do
    a newer one, but this node uses nothing new -> nothing to do (attributes, number of inputs and types all fit)
    an attribute that became an input           -> back to an attribute (Reduce*, Split)
    an operator that is a function              -> its body (Gelu, Mish, Swish, GroupNormalization, ...)
    anything else                               -> GraphError naming the node

Models must be inlined first. Not here: other domains.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, version_converter

from exporters.passes.shared.graph import is_onnx, list_graphs, notes_of, read_constant, refuse
from exporters.passes.shared.types import find_schema, list_ports, spell_type
from specs.errors import GraphError

#: Elements: what a body computes about shapes, never a weight.
_SHAPE_SIZED = 64

#: Reductions whose `axes` became an input at opset 18 (ReduceSum, Squeeze and Unsqueeze did so at 13).
_AXES_INPUT_18 = tuple(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)

#: Attribute values that an older schema has no word for: (op, attribute) -> value -> (first opset, older spelling).
_NEW_VALUES: dict[tuple[str, str], dict[str, tuple[int, str | None]]] = {
    ("GridSample", "mode"): {"linear": (20, "bilinear"), "cubic": (20, "bicubic")},
    ("Pad", "mode"): {"wrap": (19, None)},
    ("ScatterElements", "reduction"): {"max": (18, None), "min": (18, None)},
    ("ScatterND", "reduction"): {"max": (18, None), "min": (18, None)},
    ("Resize", "coordinate_transformation_mode"): {"half_pixel_symmetric": (19, None)},
    ("Resize", "keep_aspect_ratio_policy"): {"not_larger": (18, None), "not_smaller": (18, None)},
}

#: Attributes that may be dropped when they hold this value, because the older operator always behaved so.
_DROPPABLE: dict[str, int | str] = {
    "saturate": 1,
    "block_size": 0,
    "output_dtype": 0,
    "precision": 0,
    "antialias": 0,
    "ceil_mode": 0,
    "keep_aspect_ratio_policy": "stretch",
    "noop_with_empty_axes": 0,
    "round_mode": "up",
}


class SetOpset(ir.passes.InPlacePass):
    """Raises GraphError for a node that the range has no equivalent of.

    Args:
        minimum: models below are raised to it, or to the first opset that has every operator of the graph.
        maximum: models above are lowered to it.
    """

    def __init__(self, *, minimum: int, maximum: int) -> None:
        self.minimum, self.maximum = minimum, maximum

    def requires(self, model: ir.Model) -> None:
        if model.functions:
            raise ir.passes.PreconditionError("functions must be inlined first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        version = model.opset_imports.pop("ai.onnx", None)
        version = model.opset_imports.setdefault("", version or self.maximum)
        lowest = max([self.minimum, *(_first_opset(node) for node in _list_nodes(model))])
        if lowest > self.maximum:
            node = max(_list_nodes(model), key=_first_opset)
            if _first_opset(node) > self.maximum and version <= self.maximum:
                raise refuse(node, f"it needs opset {_first_opset(node)}, the target reads {self.maximum}")
            lowest = self.maximum
        if version > self.maximum:
            _lower(model, version, self.maximum)
        elif version < lowest:
            _raise(model, version, lowest)
        else:
            _forget_node_versions(model)
            return ir.passes.PassResult(model, modified=False)
        _forget_node_versions(model)
        notes_of(model).log.append(f"SetOpset: {version} -> {model.opset_imports['']}")
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        if not self.minimum <= model.opset_imports[""] <= self.maximum:
            raise ir.passes.PostconditionError(f"opset is {model.opset_imports['']}")


def _list_nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if is_onnx(node, node.op_type))


def _first_opset(node: ir.Node) -> int:
    """The opset that introduced this operator, or what its builder requires; 1 when onnx does not know it."""
    if node.version is not None:
        return node.version
    version = onnx.defs.onnx_opset_version()
    first = 1
    while version > 0 and onnx.defs.has(node.op_type, max_inclusive_version=version):
        first = onnx.defs.get_schema(node.op_type, version, "").since_version
        version = first - 1
    return first


def _forget_node_versions(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        node.version = None


def _set_version(model: ir.Model, version: int) -> None:
    model.opset_imports[""] = version
    for graph in list_graphs(model):
        graph.opset_imports[""] = version


# --- upwards -------------------------------------------------------------------------------------------------------


def _raise(model: ir.Model, version: int, target: int) -> None:
    for node in _list_nodes(model):
        if node.op_type == "Scan" and version < 9:
            raise refuse(node, "a Scan of opset 8 has a batch axis that later ones have not", fix="export it again")
    outputs = [value.name for value in model.graph.outputs]
    middle = min(18, target)
    if version < middle and _needs_adapter(model, version, middle):
        if not _convert_with_onnx(model, middle):
            raise GraphError(
                f"the model cannot be raised from opset {version} to {target}",
                got="onnx's version converter failed",
                fix=f"export it again at opset {target}",
            )
    elif version < middle:
        _set_version(model, middle)
    if model.opset_imports[""] < target:
        _require_known_groups(model, target)
        version_converter.ConvertVersionPass(target)(model)
        _set_version(model, target)
    assert [value.name for value in model.graph.outputs] == outputs


def _convert_with_onnx(model: ir.Model, target: int) -> bool:
    """onnx's converter, which keeps the names of nodes but not their metadata."""
    metadata = {node.name: dict(node.metadata_props) for node in model.graph.all_nodes()}
    with _silence(version_converter.__name__):  # it announces the fallback that is asked for
        converted = version_converter.ConvertVersionPass(target, fallback=True)(model).modified
    for node in model.graph.all_nodes():
        node.metadata_props.update(metadata.get(node.name, {}))
    return converted and model.opset_imports[""] == target


@contextlib.contextmanager
def _silence(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _needs_adapter(model: ir.Model, version: int, target: int) -> bool:
    """False when every operator has the same schema at both opsets, so that only the number changes."""
    for node in _list_nodes(model):
        old, new = find_schema(node, {"": version}), find_schema(node, {"": target})
        if old is None or (new is not None and new.since_version != old.since_version):
            return True
    return False


def _require_known_groups(model: ir.Model, target: int) -> None:
    """GroupNormalization 21 takes a scale per channel, 18 one per group: repeating it needs the number of channels."""
    for node in _list_nodes(model):
        if node.op_type != "GroupNormalization" or not model.opset_imports[""] < 21 <= target:
            continue
        shapes = [value.shape if value is not None else None for value in node.inputs[:2]]
        if any(shape is None for shape in shapes) or not isinstance(shapes[0][1], int):  # type: ignore[index]
            raise refuse(node, f"raising it to opset {target} needs its number of channels, which is not known")


# --- downwards -----------------------------------------------------------------------------------------------------


def _lower(model: ir.Model, version: int, target: int) -> None:
    while missing := [node for node in _list_nodes(model) if _needs_body(node, version, target)]:
        for node in missing:  # a body may call further functions, hence the loop
            _attach_body(model, node, version, target)
        common.InlinePass()(model)
        common.NameFixPass()(model)
        # bodies compute their axes, which older reductions take as attributes
        with _silence(optimizer.__name__):  # it says of every Split that it is left
            optimizer.fold_constants(model, input_size_limit=_SHAPE_SIZED, output_size_limit=_SHAPE_SIZED)
    for node in _list_nodes(model):
        _lower_node(node, version, target)
    _set_version(model, target)


def _needs_body(node: ir.Node, version: int, target: int) -> bool:
    if node.op_type == "GroupNormalization" and version >= 21 > target:
        return True  # 18 scales groups where 21 scales channels
    return find_schema(node, {"": target}) is None


def _attach_body(model: ir.Model, node: ir.Node, version: int, target: int) -> None:
    """Turn an operator that is defined as a function into a call of that function, to be inlined."""
    schema = find_schema(node, {"": version})
    if schema is None:
        raise refuse(node, f"opset {version} of onnx has no operator of this name")
    body = _find_body(node, schema, target)
    if body is None:
        raise refuse(node, f"opset {target} has no such operator, and it has no body in older ones")
    for name, attribute in schema.attributes.items():  # a body refers to attributes that a node may leave out
        if name not in node.attributes and attribute.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)
    function = ir.serde.deserialize_function(body)
    node.domain, node.overload = "metagen.expanded", node.name or node.outputs[0].name or ""
    function.domain, function.name, function.overload = node.domain, node.op_type, node.overload
    function.opset_imports.clear()
    node.resize_outputs(len(function.outputs))
    model.functions[function.identifier()] = function


def _find_body(node: ir.Node, schema: Any, target: int) -> onnx.FunctionProto | None:
    """The operator's function body at, or nearest to, `target`; outputs that the node does not use are cut off."""
    plain = schema.function_opset_versions
    versions = plain or schema.context_dependent_function_opset_versions
    if not versions:
        return None
    opset = max((version for version in versions if version <= target), default=min(versions))
    if plain:
        serialized = schema.get_function_with_opset_version(opset)
    else:
        proto = ir.serde.serialize_node(node).SerializeToString()
        types = [b"" if v is None else ir.serde.serialize_value(v).type.SerializeToString() for v in node.inputs]
        serialized = schema.get_context_dependent_function_with_opset_version(opset, proto, types)
    body: onnx.FunctionProto = onnx.FunctionProto.FromString(serialized)
    made = {*body.input, *(name for inner in body.node for name in inner.output)}
    used = [bool(value.name) for value in node.outputs]
    if not body.node or any(keep and name not in made for name, keep in zip(body.output, used, strict=False)):
        return None
    del body.output[len(used) :]
    for index, name in enumerate(body.output):
        if name not in made:  # unused, so any value of the body stands in for it
            body.output[index] = body.node[0].output[0]
    return body


def _lower_node(node: ir.Node, version: int, target: int) -> None:
    old, new = find_schema(node, {"": version}), find_schema(node, {"": target})
    if old is None or new is None:
        raise refuse(node, f"opset {version if old is None else target} of onnx has no operator of this name")
    if old.since_version == new.since_version:
        return
    if node.op_type in _AXES_INPUT_18 and new.since_version < 18:
        _turn_axes_into_attribute(node)
    if node.op_type == "Split" and new.since_version < 18 and "num_outputs" in node.attributes:
        _drop_num_outputs(node)
    for (op_type, name), values in _NEW_VALUES.items():
        if node.op_type == op_type and name in node.attributes:
            _respell(node, name, values, target)
    _require_fits(node, new, target)


def _turn_axes_into_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    nothing = node.attributes.get("noop_with_empty_axes")
    if axes is None:
        if nothing is not None and nothing.as_int():
            raise refuse(node, "without axes it does nothing here, and reduces everything in older opsets")
        return
    tensor = read_constant(axes)
    if tensor is None:
        raise refuse(node, "its axes are computed, and older opsets take them as an attribute")
    values = [int(axis) for axis in tensor.numpy().reshape(-1)]
    if not values:
        if nothing is not None and nothing.as_int():
            raise refuse(node, "with empty axes it does nothing here, and reduces everything in older opsets")
    else:
        node.attributes["axes"] = ir.AttrInt64s("axes", values)
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _drop_num_outputs(node: ir.Node) -> None:
    """Older Splits divide evenly without being told; an uneven division is spelled out."""
    value, count = node.inputs[0], len(node.outputs)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = value.shape[axis] if value is not None and value.shape is not None else None
    if not isinstance(size, int):
        raise refuse(node, f"older opsets need the size that is divided by {count}, and it is not known")
    chunk = -(-size // count)
    sizes = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if sizes[-1] < 0 or node.graph is None:
        raise refuse(node, f"{size} elements cannot be divided by {count}")
    del node.attributes["num_outputs"]
    if sizes[-1] != chunk:
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(sizes, dtype=ir.DataType.INT64)})
        constant.name = f"{node.name}/sizes"
        constant.outputs[0].name = f"{node.outputs[0].name}/sizes"
        constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([count])
        node.graph.insert_before(node, constant)
        node.resize_inputs(2)
        node.replace_input_with(1, constant.outputs[0])


def _respell(node: ir.Node, name: str, values: dict[str, tuple[int, str | None]], target: int) -> None:
    value = node.attributes[name].value
    if value not in values or values[value][0] <= target:
        return
    older = values[value][1]
    if older is None:
        raise refuse(node, f"{name}={value!r} does not exist before opset {values[value][0]}")
    node.attributes[name] = ir.AttrString(name, older)


def _require_fits(node: ir.Node, schema: onnx.defs.OpSchema, target: int) -> None:
    """Refuse whatever the older schema cannot say."""
    for name, attribute in list(node.attributes.items()):
        if name in schema.attributes:
            continue
        always_so = name in _DROPPABLE and attribute.value == _DROPPABLE[name]
        if not always_so and not (name == "dilations" and all(d == 1 for d in attribute.as_ints())):
            raise refuse(node, f"opset {target} has no attribute '{name}' on it")
        del node.attributes[name]
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if given > schema.max_input:
        raise refuse(node, f"opset {target} takes {schema.max_input} inputs, it has {given}")
    node.resize_inputs(min(len(node.inputs), schema.max_input))
    for port in list_ports(node, schema):
        spelled = spell_type(port.value.type)
        if spelled is not None and spelled not in port.allowed:
            raise refuse(node, f"opset {target} does not take {spelled} for '{port.value.name}'")
