"""Products with constant weights -> MetagenStepLinear: several of one input, their norm, biases, gate and residual.

    MatMul(norm(x), W_i) + b_i, up to three                  -> y_i           Gemm too; W may lie transposed
    MatMul(norm(x), W) + b + r                               -> y
    MetagenGatedLinear(norm(x), W_gate, W_up)                -> act(.) * (.)

A norm that others read too stays for them, and the node computes its own. A product that is read beside its sum with a
bias or a residual is fused without that sum.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from exporters.passes.shared.graph import Namer, is_onnx, read_constant, remove_dead, replace_output
from exporters.passes.step.nodes import (
    LINEAR,
    find_only_use,
    find_producer,
    have_few_rows,
    is_kept,
    is_weight,
    list_dims,
    make_plugin_node,
)
from exporters.passes.step.norm import Norm, match_norm

_MOST_WEIGHTS = 3


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One product that can be fused: `product` and what follows it up to `out`."""

    product: ir.Node
    x: ir.Value
    weights: tuple[ir.Value, ...]
    transposed: bool
    norm: Norm | None
    bias: ir.Value | None
    residual: ir.Value | None
    gate: str
    out: ir.Value
    last: ir.Node  # makes `out`


def is_product(node: ir.Node) -> bool:
    """Whether this multiplies by a matrix that lies in the graph."""
    if (node.domain, node.op_type) == ("metagen", "MetagenGatedLinear"):
        return True
    return is_onnx(node, "MatMul", "Gemm") and read_constant(_read_matrices(node)[0][0]) is not None


def check_product(node: ir.Node, batches: Iterable[int | str]) -> str | None:
    """Why a product is not fused; None: it is."""
    if is_kept(node):
        return "the model keeps it in float32"
    x, (weights, transposed) = node.inputs[0], _read_matrices(node)
    dims = list_dims(x)
    if x is None or dims is None or len(dims) < 2 or x.dtype != ir.DataType.FLOAT:
        return "the shape of its input is not known"
    if not have_few_rows(dims, batches):
        return f"it has more rows than the batch of the step: {list(dims)}"
    depths = [(list_dims(value) or (None,))[-1 if transposed else 0] for value in weights if is_weight(value, 2)]
    if depths != [dims[-1]] * len(weights):
        return "its weights are no float32 matrices that lie in the graph as they are multiplied"
    return _check_gemm(node) if is_onnx(node, "Gemm") else None


def find_linears(products: Sequence[ir.Node]) -> list[list[Linear]]:
    """What becomes one node each, in the order of the graph. An Add of two products belongs to the first of them."""
    taken: set[ir.Node] = set()
    groups: dict[Hashable, list[list[Linear]]] = {}
    order: list[list[Linear]] = []
    for node in products:
        linear = _match(node, taken)
        taken.add(linear.last)
        key = _find_key(linear)
        shared = groups.setdefault(key, [])
        if key is None or not shared or len(shared[-1]) == _MOST_WEIGHTS:
            shared.append([])
            order.append(shared[-1])
        shared[-1].append(linear)
    return order


def fuse_linears(graph: ir.Graph, linears: Sequence[Linear], namer: Namer, replaced: dict[ir.Value, ir.Value]) -> None:
    """Put one node in place of products that share everything but their weights and biases.

    Args:
        replaced: what earlier calls put in place of the values that `find_linears` saw; added to.
    """
    first = linears[0]
    norm, biases = first.norm, [one.bias for one in linears if one.bias is not None]
    inputs = [norm.x if norm else first.x, *(weight for one in linears for weight in one.weights)]
    inputs += [norm.weight] if norm else []
    inputs += biases
    inputs += [first.residual] if first.residual is not None else []
    made = make_plugin_node(
        LINEAR,
        [replaced.get(value, value) for value in inputs],
        attributes={
            "weights": sum(len(one.weights) for one in linears),
            "transposed": int(first.transposed),
            "norm": int(norm is not None),
            "epsilon": norm.epsilon if norm else 0.0,
            "bias": int(bool(biases)),
            "residual": int(first.residual is not None),
            "gate": first.gate,
        },
        outputs=[(one.out, one.out.shape) for one in linears],
        origin=first.product,
        namer=namer,
    )
    graph.insert_before(first.product if first.residual is None else first.last, made)
    for one, new in zip(linears, made.outputs, strict=True):
        replace_output(graph, one.out, new)
        replaced[one.out] = new
        remove_dead(graph, [one.last])


def _match(node: ir.Node, taken: set[ir.Node]) -> Linear:
    """A product that `check_product` lets through, with the norm before and bias and residual behind it."""
    x, (weights, transposed) = node.inputs[0], _read_matrices(node)
    assert x is not None
    out, last, bias, residual, gate = node.outputs[0], node, None, None, "none"
    if node.op_type == "MetagenGatedLinear":
        gate = node.attributes["activation"].as_string()
    else:
        bias = node.inputs[2] if len(node.inputs) > 2 else None  # of a Gemm
        add = _find_sum(out, taken)
        found = None if bias is not None or add is None else next((v for v in add.inputs if _is_bias(v, out)), None)
        if add is not None and found is not None:
            out, last, bias = add.outputs[0], add, found
            add = _find_sum(out, taken)
        other = _find_other(add, out) if add is not None else None
        if add is not None and other is not None:
            out, last, residual = add.outputs[0], add, other
    return Linear(
        product=node,
        x=x,
        weights=tuple(weight for weight in weights if weight is not None),
        transposed=transposed,
        norm=match_norm(x),
        bias=bias,
        residual=residual,
        gate=gate,
        out=out,
        last=last,
    )


def _find_sum(value: ir.Value, taken: set[ir.Node]) -> ir.Node | None:
    """The Add that alone reads `value`, and that no other product has."""
    node = find_only_use(value)
    return node if node is not None and is_onnx(node, "Add") and not is_kept(node) and node not in taken else None


def _is_bias(value: ir.Value | None, out: ir.Value) -> bool:
    dims = list_dims(out)
    return dims is not None and is_weight(value, 1) and list_dims(value) == dims[-1:]


def _find_other(add: ir.Node, value: ir.Value) -> ir.Value | None:
    """The residual in Add(value, residual): of the same shape, and computed."""
    other = add.inputs[1] if add.inputs[0] is value else add.inputs[0]
    if other is None or list_dims(other) is None or list_dims(other) != list_dims(value):
        return None
    return other if read_constant(other) is None and other.dtype == value.dtype else None


def _find_key(linear: Linear) -> Hashable:
    """Equal for products that may share a node; None: this one stands alone."""
    if linear.gate != "none" or linear.residual is not None:
        return None
    return linear.x, linear.bias is not None, linear.transposed


def _read_matrices(node: ir.Node) -> tuple[list[ir.Value | None], bool]:
    """The weights of a product, and whether they lie transposed, [N, K]."""
    if is_onnx(node, "Gemm"):
        return [node.inputs[1]], _read_int(node, "transB") == 1
    if is_onnx(node, "MatMul"):
        turn = find_producer(node.inputs[1], "Transpose")
        if turn is not None and is_weight(turn.inputs[0], 2) and not is_kept(turn):
            perm = turn.attributes["perm"].as_ints() if "perm" in turn.attributes else [1, 0]
            return [turn.inputs[0]], list(perm) == [1, 0]
    return list(node.inputs[1:]), False


def _check_gemm(node: ir.Node) -> str | None:
    scaled = any(name in node.attributes and node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if scaled or _read_int(node, "transA") or (bias is not None and not _is_bias(bias, node.outputs[0])):
        return "it scales, transposes its input, or adds more than a vector"
    return None


def _read_int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
