"""FlattenTokens: what treats every token alike works on a matrix, not on a stack of matrices (TensorRT 8.6).

    x [B, T, C] -> LayerNormalization, MatMul(W), bias, activation, residual        each on [B T, C]

8.6 makes a matrix of the tokens for every product and stacks them again for every norm; the Reshapes between split a
norm into two kernels, its mean and the rest. Measured on an H200 with TensorRT 8.6.0, fp16, ViT-B/16 at batch 32: 12.5
+ 8.3 us a norm become 12.5, of 288 us a layer.

A region starts at a LayerNormalization or at the merge of heads, goes on through whatever works on single tokens, and
ends with a Reshape back. T and C must be static: B = -1 is what a Reshape can find out.

Not here: graphs without a LayerNormalization (decoders with RMSNorm), and products with two activations.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.passes.shared.graph import Namer, add_initializer, is_onnx, notes_of, read_constant

#: One tensor in, the same shape out, every element for itself.
_UNARY = ("Cast", "Erf", "Gelu", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh")
_BINARY = ("Add", "Div", "Mul", "Pow", "Sub")


class FlattenTokens(ir.passes.InPlacePass):
    """Fires in the main graph. Needs shapes (InferTypes), and leaves those of its region to be inferred again."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(is_onnx(node, "LayerNormalization") for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        flattener = _Flattener(model)
        for node in list(model.graph):
            flattener.visit(node)
        for index, output in enumerate(list(model.graph.outputs)):
            if output in flattener.sizes:
                flattener.restore_output(index, output)
        if flattener.sizes:
            notes_of(model).log.append(f"FlattenTokens: {len(flattener.sizes)} tensors of tokens became matrices")
        return ir.passes.PassResult(model, modified=bool(flattener.sizes))


class _Flattener:
    """`sizes` holds what is a matrix now, with the shape that it had: [B, T, C]."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.namer = model.graph, Namer(model)
        self.sizes: dict[ir.Value, ir.Shape] = {}
        self.flat: dict[ir.Value, ir.Value] = {}  # stacked -> its matrix
        self.stacked: dict[ir.Value, ir.Value] = {}  # matrix -> stacked again

    def visit(self, node: ir.Node) -> None:
        """Take `node` into the region, or give it its inputs stacked."""
        tokens = [value for value in node.inputs if value is not None and self._is_tokens(value)]
        if tokens and self._works_on_tokens(node) and self._is_wanted(node, tokens):
            for index, value in enumerate(node.inputs):
                if value in tokens and value not in self.sizes:
                    node.replace_input_with(index, self._flatten(value, node))
            if is_onnx(node, "LayerNormalization", "Split"):
                node.attributes["axis"] = ir.AttrInt64("axis", -1)
            for output in node.outputs:
                shape = output.shape
                assert shape is not None
                self.sizes[output], output.shape = shape, ir.Shape([None, shape[2]])
            return
        for index, value in enumerate(node.inputs):
            if value in self.sizes and not _reads_any_shape(node):
                node.replace_input_with(index, self._stack(value))

    def _is_tokens(self, value: ir.Value) -> bool:
        return value in self.sizes or (read_constant(value) is None and _has_tokens(value.shape))

    def _read_shape(self, value: ir.Value) -> ir.Shape:
        shape = self.sizes.get(value, value.shape)
        assert shape is not None
        return shape

    def _works_on_tokens(self, node: ir.Node) -> bool:
        if not all(_has_tokens(output.shape) for output in node.outputs):
            return False  # inference may lose what of an input is static
        if any(use.node.graph is not self.graph for output in node.outputs for use in output.uses()):
            return False  # the body of an If or a Loop reads it as it is
        if is_onnx(node, *_UNARY):
            return True
        if is_onnx(node, "LayerNormalization", "Split"):
            default = -1 if node.op_type == "LayerNormalization" else 0
            return (node.attributes["axis"].as_int() if "axis" in node.attributes else default) in (-1, 2)
        if is_onnx(node, "MatMul"):
            weight = node.inputs[1]
            return node.inputs[0] is not None and weight is not None and _is_matrix(weight)
        if not is_onnx(node, *_BINARY) or node.inputs[0] is None or node.inputs[1] is None:
            return False
        first, second = node.inputs
        if self._is_tokens(first) and self._is_tokens(second):  # type: ignore[arg-type]
            return _are_equal(self._read_shape(first), self._read_shape(second))  # type: ignore[arg-type]
        other = second if self._is_tokens(first) else first  # type: ignore[arg-type]
        return _is_same_for_all_tokens(other)

    def _is_wanted(self, node: ir.Node, tokens: list[ir.Value]) -> bool:
        """A norm starts a region, and so does a product behind the merge of heads; others follow."""
        if is_onnx(node, "LayerNormalization") or any(value in self.sizes for value in tokens):
            return True
        return is_onnx(node, "MatMul") and _find_merge(tokens[0]) is not None

    def _flatten(self, value: ir.Value, user: ir.Node) -> ir.Value:
        if value in self.flat:
            return self.flat[value]
        width = self._read_shape(value)[2]
        merge = _find_merge(value)
        if merge is not None and len(value.uses()) == 1 and not value.is_graph_output():
            merge.replace_input_with(1, self._constant([-1, width], value))
            self.sizes[value], value.shape = self._read_shape(value), ir.Shape([None, width])
            return value
        matrix = self._reshape(value, [-1, width], "matrix", before=user)
        self.flat[value] = matrix
        return matrix

    def _stack(self, matrix: ir.Value) -> ir.Value:
        if matrix not in self.stacked:
            _, tokens, width = self.sizes[matrix]
            producer = matrix.producer()
            assert producer is not None
            self.stacked[matrix] = self._reshape(matrix, [-1, tokens, width], "tokens", after=producer)
            self.stacked[matrix].shape = self.sizes[matrix]
        return self.stacked[matrix]

    def restore_output(self, index: int, matrix: ir.Value) -> None:
        """The graph's output keeps its shape and its name."""
        name = matrix.name
        stacked = self._stack(matrix)
        matrix.name = self.namer(f"{name}/matrix")
        stacked.name = name
        self.graph.outputs[index] = stacked

    def _reshape(
        self,
        value: ir.Value,
        sizes: list[object],
        suffix: str,
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
    ) -> ir.Value:
        origin = after or before
        assert origin is not None
        node = ir.node("Reshape", [value, self._constant(sizes, value)], metadata_props=dict(origin.metadata_props))
        node.name = self.namer(f"{value.name}/to_{suffix}")
        node.outputs[0].name = self.namer(f"{value.name}/{suffix}")
        node.outputs[0].type = value.type
        node.outputs[0].shape = ir.Shape([None, *sizes[1:]])  # type: ignore[list-item]
        if after is not None:
            self.graph.insert_after(after, node)
        else:
            assert before is not None
            self.graph.insert_before(before, node)
        return node.outputs[0]

    def _constant(self, sizes: list[object], origin: ir.Value) -> ir.Value:
        tensor = ir.tensor(np.array(sizes, np.int64))
        return add_initializer(self.graph, tensor, self.namer(f"{origin.name}/sizes"))


def _has_tokens(shape: ir.Shape | None) -> bool:
    """[B, T, C] of static T and C."""
    return shape is not None and len(shape) == 3 and all(isinstance(size, int) and size > 0 for size in shape[1:])


def _are_equal(first: ir.Shape, second: ir.Shape) -> bool:
    """The same sizes, and no single row that serves all rows of a batch: that is no stack of as many matrices."""
    batches = [size if isinstance(size, int) else None for size in (first[0], second[0])]
    return batches[0] == batches[1] and tuple(first[1:]) == tuple(second[1:])


def _find_merge(value: ir.Value) -> ir.Node | None:
    """The Reshape of Reshape([B, T, H, D] -> [B, T, C])."""
    node = value.producer()
    if node is None or not is_onnx(node, "Reshape") or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    return node if len(node.inputs[0].shape) == 4 else None


def _reads_any_shape(node: ir.Node) -> bool:
    """A Reshape to a constant shape without 0 sees the elements alone, in their order."""
    shape = read_constant(node.inputs[1]) if is_onnx(node, "Reshape") else None
    return shape is not None and bool((shape.numpy() != 0).all())


def _is_matrix(weight: ir.Value) -> bool:
    """A constant [C, N], also behind Q and DQ."""
    node = weight.producer()
    while (
        node is not None and is_onnx(node, "DequantizeLinear", "QuantizeLinear", "Cast") and node.inputs[0] is not None
    ):
        weight, node = node.inputs[0], node.inputs[0].producer()
    tensor = read_constant(weight)
    return tensor is not None and len(tensor.shape) == 2


def _is_same_for_all_tokens(value: ir.Value | None) -> bool:
    """A constant of one row, or one number."""
    tensor = read_constant(value)
    return tensor is not None and all(size == 1 for size in tuple(tensor.shape)[:-1]) and len(tensor.shape) <= 2
