"""What torch and onnxscript find out again and again, or for nobody. Inside these contexts they do the same work on the
same graph, and what comes out is the same, byte by byte.

    skip_stack_traces   torch.export writes no Python stack on every node, a tenth of its time: nothing here reads it
    keep_translations   torch.onnx's table of translations is read once a process
    keep_operators      a program of operators that torch.onnx translates is not traced again to be decomposed
    trust_known_types   type promotion reads the types that a program states, and runs no node again to learn them
    try_fitting_rules   a rewrite rule is tried on nodes of the operator that its pattern ends in, not on every node

None but the first has a switch in torch 2.13 or onnxscript 0.7, so the others put a function of their own in the place
of theirs, and take it away again.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.rewriter import RewriteRule
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion
from torch.onnx._internal.fx.passes.type_promotion import _TypePromotionInterpreter

_TRANSLATIONS: dict[object, ONNXRegistry] = {}  # by what was asked for


@contextlib.contextmanager
def skip_stack_traces() -> Iterator[None]:
    """Inside, torch.export does not look up which lines of Python made a node."""
    with _replaced(torch.fx.config, "do_not_emit_stack_traces", True):
        yield


@contextlib.contextmanager
def keep_translations() -> Iterator[None]:
    """Inside, torch.onnx reads its table of translations once a process: it parses 500 functions for each graph."""
    read = ONNXRegistry.from_torchlib

    def copy_known(*arguments: int, **named: int) -> ONNXRegistry:  # torch's error reports ask without an opset
        asked = (arguments, *sorted(named.items()))
        if asked not in _TRANSLATIONS:
            _TRANSLATIONS[asked] = read(*arguments, **named)
        registry = copy.copy(_TRANSLATIONS[asked])
        registry.functions = {name: [*found] for name, found in registry.functions.items()}  # custom ones are put in
        return registry

    with _replaced(ONNXRegistry, "from_torchlib", staticmethod(copy_known)):
        yield


@contextlib.contextmanager
def keep_operators() -> Iterator[None]:
    """Inside, torch.onnx decomposes nothing, and makes no table of what it would decompose."""
    with _replaced(_fx_passes, "decompose_with_registry", lambda program, registry: program):
        yield


@contextlib.contextmanager
def trust_known_types() -> Iterator[None]:
    """Inside, torch.onnx inserts type promotions without running the program once more on tensors without values.

    It looks at types only, and every node of a program states its own: a promotion that is put in changes what goes
    into a node, never the type that comes out of it.
    """
    run = _TypePromotionInterpreter.run_node

    def run_node(self: _TypePromotionInterpreter, node: torch.fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    with _replaced(_TypePromotionInterpreter, "run_node", run_node):
        yield


@contextlib.contextmanager
def try_fitting_rules() -> Iterator[None]:
    """Inside, onnxscript tries a rule only where its first step could succeed.

    A match begins at the operator that the pattern ends in. For a pattern of two outputs the rewriter lists all nodes
    before it looks at that operator: a graph of N nodes took N * N steps.
    """
    ends: dict[int, tuple[str, str] | None] = {}  # domain and operator; None: any
    try_rewrite = RewriteRule.try_rewrite

    def try_where_it_fits(self: RewriteRule, model: ir.Model, graph: Any, node: ir.Node, **named: Any) -> Any:
        if id(self) not in ends:
            identifier = self._target_pattern.output_nodes[0].op_identifier()
            ends[id(self)] = identifier and identifier[:2]
        end = ends[id(self)]
        if end is not None and end != (node.domain, node.op_type):
            return None
        return try_rewrite(self, model, graph, node, **named)

    with _replaced(RewriteRule, "try_rewrite", try_where_it_fits):
        yield


@contextlib.contextmanager
def _replaced(owner: type | ModuleType, name: str, value: object) -> Iterator[None]:
    own = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)
