"""Small random graphs near the patterns that passes look for: the pattern, its near misses, its middle read elsewhere.

`GraphWriter` writes one graph with its feed; each of `FAMILIES` draws one around a pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Size = int | str
_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BOOL: np.bool_}
_ANY_RANK: tuple[tuple[int, ...], ...] = ((), (), (1,), (1, 1), (1, 1, 1, 1))


class GraphWriter:
    """Nodes, constants and inputs under made-up names; `feed` holds a value for each input."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.feed: dict[str, np.ndarray] = {}
        self._count = 0

    def pick(self, *choices: Any) -> Any:
        return choices[self.random.integers(len(choices))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def constant(self, value: Any) -> str:
        array, name = np.asarray(value), self.name()
        if self.chance(0.7):
            self.weights.append(numpy_helper.from_array(array, name))
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def scalar(self, value: float, shape: tuple[int, ...] | None = None) -> str:
        return self.constant(np.full(self.pick(*_ANY_RANK) if shape is None else shape, value, np.float32))

    def normal(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape).astype(np.float32))

    def input(self, shape: Sequence[Size], sizes: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        name = self.name()
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        drawn = self.random.integers(0, 2, sizes) if kind == TensorProto.BOOL else self.random.uniform(-3, 3, sizes)
        self.feed[name] = np.asarray(drawn).astype(_TYPES[kind])
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def either(self, kind: str, first: str, second: str) -> str:
        """A node of two inputs, in either order."""
        return self.node(kind, *((first, second) if self.chance(0.5) else (second, first)))

    def output(self, name: str) -> None:
        if name not in self.outputs and name not in self.feed:
            self.outputs.append(name)

    def finish(self, opset: int) -> onnx.ModelProto:
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "random", self.inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model)
        known = {value.name: value for value in (*inferred.graph.output, *inferred.graph.value_info)}
        del model.graph.output[:]
        model.graph.output.extend(known[name] for name in self.outputs)
        return model


def draw_gelu(write: GraphWriter) -> int:
    """GELU in both spellings and every order; factors a little off or of any rank, middles that are read elsewhere."""
    shape = write.pick([], ["N"], ["N", 4], [2, 3, 4])
    x = write.input(shape, [3 if size == "N" else size for size in shape])
    off = 1.0 if write.chance(0.8) else 1.01
    if write.chance(0.5):
        half = write.either("Mul", x, write.scalar(np.sqrt(0.5) * off))
        middle = write.node("Erf", half if write.chance(0.5) else write.node("Div", x, write.scalar(np.sqrt(2) * off)))
    else:
        square = write.node("Mul", x, x)
        cube = write.either("Mul", x, square) if write.chance(0.5) else write.node("Pow", x, write.scalar(3.0))
        inner = write.either("Add", x, write.either("Mul", cube, write.scalar(0.044715 * off)))
        middle = write.node("Tanh", write.either("Mul", inner, write.scalar(np.sqrt(2 / np.pi))))
    one = write.either("Add", middle, write.scalar(1.0))
    order = write.pick("last", "inside", "first")
    if order == "last":
        write.output(write.either("Mul", x, write.either("Mul", one, write.scalar(0.5))))
    elif order == "inside":
        write.output(write.either("Mul", write.either("Mul", x, one), write.scalar(0.5)))
    else:
        write.output(write.either("Mul", write.either("Mul", x, write.scalar(0.5)), one))
    if write.chance(0.25):
        write.output(write.pick(middle, one))
    return int(write.pick(18, 20))


def draw_masked_scores(write: GraphWriter) -> int:
    """One or two additive masks before a Softmax: by row, by key, by both; of any low, and biases that are no masks."""
    rows, heads, queries, keys = 2, write.pick(1, 2, 2), write.pick(1, 1, 1, 3), write.pick(4, 5)
    b, t, s = ("B", write.pick("T", queries), write.pick("S", keys)) if write.chance(0.6) else (rows, queries, keys)
    total = write.input([b, heads, t, s], [rows, heads, queries, keys])
    for _ in range(write.pick(1, 2)):
        shape, sizes = write.pick(
            ([b, 1, 1, s], [rows, 1, 1, keys]),
            ([b, 1, t, s], [rows, 1, queries, keys]),
            ([b, 1, t, 1], [rows, 1, queries, 1]),
            ([b, 1, t, 1], [rows, 1, queries, 1]),
            ([b, 1, 1, 1], [rows, 1, 1, 1]),
            ([1, 1, t, s], [1, 1, queries, keys]),
            ([b, heads, t, s], [rows, heads, queries, keys]),
            ([t, s], [queries, keys]),
        )
        low = write.scalar(write.pick(-10.0, -1e4, -1e4, -1e9, -3.4e38), ())
        seen, kept = write.input(shape, sizes, TensorProto.BOOL), write.scalar(write.pick(0.0, 0.0, 0.0, 0.0, 1.0), ())
        bias = write.node("Where", seen, *((kept, low) if write.chance(0.7) else (low, kept)))
        bias = write.input(shape, sizes) if write.chance(0.2) else bias
        bias = write.node("Identity", bias) if write.chance(0.3) else bias
        total = write.either("Add", total, bias)
        if write.chance(0.1):
            write.output(total)
    shares = write.node("Softmax", total, axis=write.pick(-1, -1, 3, 1))
    write.output(shares)
    return int(write.pick(13, 17, 18))


def draw_patches(write: GraphWriter) -> int:
    """A convolution over whole patches, or nearly; its result as tokens, or nearly."""
    patch, channels, features = write.pick((2, 2), (3, 2), (1, 2)), write.pick(1, 3), write.pick(2, 4)
    rest = write.pick(0, 0, 0, 1)
    image = [patch[0] * write.pick(1, 2, 3) + rest, patch[1] * write.pick(1, 2)]
    x = write.input([write.pick("N", 2), channels, *image], [2, channels, *image])
    weights = [write.normal(features, channels, *patch), *([write.normal(features)] if write.chance(0.6) else [])]
    options: dict[str, Any] = {"strides": write.pick(patch, patch, patch, (1, 1))}
    if write.chance(0.3):
        options |= write.pick({"pads": [0] * 4}, {"pads": [1] * 4}, {"auto_pad": "VALID"}, {"auto_pad": "SAME_UPPER"})
    cut = write.node("Conv", x, *weights, kernel_shape=patch, **options)
    sizes = write.pick([0, 0, -1], [0, features, -1], [2, features // 2, -1])
    tokens = write.node("Reshape", cut, write.constant(np.array(sizes)))
    turned = write.node("Transpose", tokens, perm=write.pick([0, 2, 1], [0, 2, 1], [2, 0, 1]))
    write.output(turned)
    if write.chance(0.2):
        write.output(write.pick(cut, tokens))
    return int(write.pick(13, 17))


def draw_tokens(write: GraphWriter) -> int:
    """Norms, products, sums of tokens, of one row that serves a batch too; merges of heads; bodies that read them."""
    length, width = write.pick(1, 3, 4), write.pick(4, 6)
    batch = write.pick("B", 2)
    values = [write.input([batch, length, width], [2, length, width])]
    values += [write.input([1, length, width], [1, length, width])] * write.chance(0.4)
    values += [write.input([batch, 1, width], [2, 1, width])] * write.chance(0.3)
    for _ in range(write.random.integers(2, 9)):
        x, step = write.pick(*values), write.random.integers(8)
        if step < 2:
            made = write.node("LayerNormalization", x, write.normal(width), axis=write.pick(-1, -1, 2))
        elif step == 2:
            made = write.node("MatMul", x, write.normal(width, width))
        elif step == 3:
            made = write.either(write.pick("Add", "Mul"), x, write.pick(*values))
        elif step == 4:
            made = write.either("Add", x, write.normal(*write.pick((width,), (1, 1, width), (length, width))))
        elif step == 5:
            made = write.node(write.pick("Relu", "Tanh"), x)
        elif step == 6:
            heads = write.node("Reshape", x, write.constant(np.array([0, -1, 2, width // 2])))
            turned = write.node("Transpose", heads, perm=[0, 2, 1, 3])
            made = write.node("Reshape", turned, write.constant(np.array([0, -1, width])))
        else:
            write.output(_write_if(write, x))
            continue
        values.append(made)
    write.output(values[-1])
    write.output(write.pick(*values))
    if not write.outputs:
        write.output(write.node("Relu", values[-1]))
    return int(write.pick(17, 18))


def _write_if(write: GraphWriter, x: str) -> str:
    """An If whose bodies read `x` of the graph around them."""
    bodies = {}
    for branch, kind in (("then_branch", "Neg"), ("else_branch", "Abs")):
        name = write.name()
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies[branch] = helper.make_graph([helper.make_node(kind, [x], [name])], branch, [], [out])
    return write.node("If", write.input([], [], TensorProto.BOOL), **bodies)


def draw_elu(write: GraphWriter) -> int:
    """Elu of any alpha."""
    x = write.input(["N", 3], [4, 3])
    write.output(write.node("Elu", x, alpha=write.pick(0.0, 0.5, 1.0, 2.0)))
    return int(write.pick(7, 13, 18))


FAMILIES: dict[str, Callable[[GraphWriter], int]] = {
    "gelu": draw_gelu,
    "masked scores": draw_masked_scores,
    "patches": draw_patches,
    "tokens": draw_tokens,
    "elu": draw_elu,
}
