"""The noise of rounding to half precision, written into a float32 graph.

    x --> half(x (1 + u d)), u drawn from [-1, 1)       d a quarter of what the last place of half precision is worth

Rounding to one of the two nearest halves, at random where x lies between them (Parker's Monte Carlo arithmetic, 1997):
what half precision holds already stays as it is, so that integers, masks and what is only moved are not rounded again.
Everything is computed in float32. On GPUs every value is rounded that a half graph holds in half precision
(`convert_to_float16.plan_half`); for CPUs the weights alone, which is what fp16 is there (`narrow_weights`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from exporters.onnx_models.int8_noise import SEEDS_APART
from exporters.passes import copy_for_half
from exporters.passes.convert_to_float16 import HalfPorts, plan_half
from exporters.passes.narrow_weights import find_narrow_weights
from exporters.passes.shared.graph import Namer, add_initializer, read_constant
from exporters.passes.shared.keep_float32 import is_float
from specs.errors import GraphError

_HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
#: A quarter of the last place of a number just above a power of two, relative: an eighth just below the next.
_DITHER = {ir.DataType.FLOAT16: 2.0**-12, ir.DataType.BFLOAT16: 2.0**-9}


def add_half_noise(model: ir.Model, seed: int, *, lowering: str, precision: str) -> ir.Model | None:
    """A copy with the noise of `precision`, fp16 or bf16; None where nothing would be rounded.

    Also where the target's opset lacks what only the rewrites of its pipeline take out of the graph.
    """
    try:
        noisy = copy_for_half(model, lowering, precision)
    except GraphError:
        return None
    half = _HALVES[precision]
    if lowering == "onnxruntime":
        return noisy if _move_weights(noisy, half, seed) else None
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(noisy)
    planned = {node: ports for node, ports in plan_half(noisy, half).items() if isinstance(ports, HalfPorts)}
    rounder = _Rounder(noisy, half, seed)
    for node, ports in planned.items():
        for index in ports.outputs:
            rounder.round_output(node.outputs[index])
    for node, ports in planned.items():
        for index in ports.inputs:
            rounder.round_input(node, index)
    return noisy if planned else None


def _move_weights(model: ir.Model, half: ir.DataType, seed: int) -> int:
    random = np.random.default_rng(seed)
    narrow = [value for value, reason in find_narrow_weights(model) if not reason]
    for value in narrow:
        assert value.const_value is not None
        value.const_value = ir.tensor(_round_array(value.const_value.numpy(), half, random), name=value.name)
    return len(narrow)


class _Rounder:
    """Puts noise behind values; each is rounded once, whoever reads it."""

    def __init__(self, model: ir.Model, half: ir.DataType, seed: int) -> None:
        self.half, self.seed = half, seed
        self.namer, self.random = Namer(model), np.random.default_rng(seed)
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.made: set[ir.Value] = set()

    def round_output(self, value: ir.Value) -> None:
        """Every reader of `value`, and the graph's caller, gets it rounded, under its name."""
        producer = value.producer()
        assert producer is not None and producer.graph is not None
        graph, readers, name = producer.graph, list(value.uses()), value.name
        new = self._insert(value, producer)
        for node, index in readers:
            node.replace_input_with(index, new)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = new
        if new.is_graph_output():
            value.name = self.namer(f"{name}/exact")
            new.name = name

    def round_input(self, node: ir.Node, index: int) -> None:
        """`node` reads its input rounded; others go on reading what it is."""
        value = node.inputs[index]
        if value is None or value in self.made or not is_float(value):
            return
        if value not in self.rounded:
            tensor = read_constant(value)
            if tensor is None:
                self.rounded[value] = self._insert(value, value.producer() or node)
            else:
                graph = value.graph or node.graph
                assert graph is not None
                moved = ir.tensor(_round_array(tensor.numpy(), self.half, self.random))
                self.rounded[value] = add_initializer(graph, moved, self.namer(f"{value.name}/rounded"))
        node.replace_input_with(index, self.rounded[value])

    def _insert(self, value: ir.Value, near: ir.Node) -> ir.Value:
        """half(value (1 + u d)) as float32, computed where `value` is made; `near`: its producer, else a reader."""
        seed = self.seed * SEEDS_APART + len(self.made)
        dither = _DITHER[self.half]
        attributes = {"low": 1 - dither, "high": 1 + dither, "seed": seed, "dtype": 1}
        drawn = ir.node("RandomUniformLike", [value], attributes=attributes)
        moved = ir.node("Mul", [value, drawn.outputs[0]])
        narrow = ir.node("Cast", [moved.outputs[0]], attributes={"to": self.half.value})
        wide = ir.node("Cast", [narrow.outputs[0]], attributes={"to": ir.DataType.FLOAT.value})
        nodes = [drawn, moved, narrow, wide]
        for node in nodes:
            node.name = self.namer(f"{value.name}/rounded/{node.op_type}")
            node.outputs[0].name = self.namer(f"{node.name}/out")
            node.outputs[0].type = ir.TensorType(self.half if node is narrow else ir.DataType.FLOAT)
            node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
        producer, graph = value.producer(), value.graph or near.graph
        assert graph is not None
        if producer is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(producer, nodes)
        self.made.add(wide.outputs[0])
        return wide.outputs[0]


def _round_array(array: NDArray[np.float32], half: ir.DataType, random: np.random.Generator) -> NDArray[np.float32]:
    """`array` in half precision, at random between two; what lies beyond its range stays: a mask, it saturates."""
    drawn = random.uniform(1 - _DITHER[half], 1 + _DITHER[half], array.shape)
    with np.errstate(over="ignore"):
        rounded = (array * drawn).astype(np.float32).astype(half.numpy()).astype(np.float32)
    return np.where(np.isfinite(rounded), rounded, array).astype(np.float32)
