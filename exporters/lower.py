"""ExportedProgram -> onnx_ir.Model, custom ops kept, bodies attached. The only file that calls torch.onnx.

    program --torch.onnx--> nodes of opset 18 and domain `metagen` --name dims, tidy, add bodies--> portable model

Every node carries `metagen.module`, the dotted path of the torch module it came from: parity reports and error
messages name it. Weights stay lazy torch tensors until `weights.py` writes them.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import logging
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common
from torch.export import ExportedProgram

from exporters.ops import CUSTOM_OPS, attach_bodies, registered_schemas
from exporters.ops.lstm import STANDARD_OPS
from exporters.passes.fold_batch_norm import FoldBatchNorm
from exporters.passes.fold_transposed_weights import FoldTransposedWeights
from exporters.passes.int8.weighted import UNQUANTISED_KEY
from exporters.passes.shared.derived import NARROW
from exporters.passes.shared.keep_float32 import KEEP_KEY
from exporters.passes.store_narrow_weights import StoreNarrowWeights
from exporters.passes.widen_weights import WidenWeights
from exporters.shortcuts import keep_operators, keep_translations, trust_known_types, try_fitting_rules
from exporters.trace import make_dynamic_shapes
from specs import ops
from specs.bundle import RANGE_REASON
from specs.errors import ExportError
from specs.handlers import GraphModule
from specs.schema import Dim

#: The opset of the portable graph: what torch's translations are written in, so nothing is converted.
PORTABLE_OPSET = 18
MODULE_KEY = "metagen.module"
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
#: Weights are stored as products take them, in the type that they came in: typed graphs then share their bytes.
_TURN_WEIGHTS = (WidenWeights(), FoldTransposedWeights(keep_tied=True), StoreNarrowWeights())
_SMALL_ELEMENTS = 1024


def lower(program: ExportedProgram, graph: GraphModule) -> ir.Model:
    """Translate to ONNX. Inputs, outputs and dynamic dims get the names that the graph declares.

    Raises:
        ExportError: torch has no translation for an operator of the program.
    """
    try:
        with _quiet_exporter(), registered_schemas():
            model = _translate(program, graph)
            FoldBatchNorm()(model)  # in float64; onnxscript's optimiser would do it in float32, with weights in memory
            with try_fitting_rules():
                onnxscript.optimizer.optimize_ir(model, should_fold=_decide_fold)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"torch.onnx cannot translate component '{graph.component}'",
            where=f"graph '{graph.name}'",
            got=_find_cause(error),
            fix="rewrite the module with operators that torch.onnx translates, or add a custom op in exporters/ops/",
        ) from error
    model.graph.name = graph.name
    _rename_dims(model, graph)
    _tidy_metadata(model, graph.component)
    _mark_choices(model, graph)
    attach_bodies(model)
    common.RemoveUnusedOpsetsPass()(model)
    for step in _TURN_WEIGHTS:
        step(model)
    model.meta.clear()  # the notes of these passes: nothing in them is about a choice of ours
    return model


def _translate(program: ExportedProgram, graph: GraphModule) -> ir.Model:
    """torch.onnx's own translation, unoptimised.

    torch.onnx traces a program a second time, to decompose what it has no translation for: most of its time. A program
    of translatable operators is spared that; one that turns out to need it is translated again, with it.
    """
    if not _is_functional(program):
        return _call_exporter(program, graph)
    try:
        with keep_operators():
            return _call_exporter(program, graph)
    except torch.onnx.errors.OnnxExporterError:
        return _call_exporter(program, graph)


def _is_functional(program: ExportedProgram) -> bool:
    """Whether no operator writes to its inputs or holds a graph. What torch writes for nothing is removed before."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach_.default or _keeps_type(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _SPELLINGS:
            _SPELLINGS[node.target](node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return False
    return True


def _spell_conversion(node: torch.fx.Node) -> None:
    node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}


def _spell_square(node: torch.fx.Node) -> None:
    node.target, node.args = torch.ops.aten.pow.Tensor_Scalar, (node.args[0], 2)


def _spell_transpose(node: torch.fx.Node) -> None:
    node.target, node.args = torch.ops.aten.permute.default, (node.args[0], [*range(node.meta["val"].dim())][::-1])


def _spell_conjunction(node: torch.fx.Node) -> None:
    node.target = torch.ops.aten.bitwise_and.Tensor


def _spell_transposed_convolution(node: torch.fx.Node) -> None:
    given = _list_arguments(node)
    x, weight, bias, stride, padding, output_padding, groups, dilation = given.values()
    node.target, node.kwargs = torch.ops.aten.convolution.default, {}
    node.args = x, weight, bias, stride, padding, dilation, True, output_padding, groups


def _spell_batch_norm(node: torch.fx.Node) -> None:
    x, weight, bias, mean, variance, training, momentum, eps, _ = _list_arguments(node).values()
    if training or mean is None:
        return
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            torch.ops.aten._native_batch_norm_legit_no_training.default,
            (x, weight, bias, mean, variance, momentum, eps),
        )
    nothing = node.meta["val"].new_empty(0)  # no statistics of this batch
    norm.meta = {**node.meta, "val": (node.meta["val"], nothing, nothing)}
    node.target, node.args, node.kwargs = operator.getitem, (norm, 0), {}


def _list_arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Every argument of an operator's schema by name, in its order."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    known = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    return known | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


#: Operators that torch.onnx would trace a whole program again for, to write them in this other way.
_SPELLINGS: dict[object, Callable[[torch.fx.Node], None]] = {
    torch.ops.aten.to.dtype: _spell_conversion,
    torch.ops.aten.square.default: _spell_square,
    torch.ops.aten.numpy_T.default: _spell_transpose,
    torch.ops.aten.__and__.Tensor: _spell_conjunction,
    torch.ops.aten.conv_transpose1d.default: _spell_transposed_convolution,
    torch.ops.aten.batch_norm.default: _spell_batch_norm,
}


def _keeps_type(node: torch.fx.Node) -> bool:
    """A conversion to the type that its input has."""
    if node.target is not torch.ops.aten.to.dtype:
        return False
    source, dtype = node.args[:2]
    assert isinstance(source, torch.fx.Node)
    return bool(source.meta["val"].dtype == dtype)


def _call_exporter(program: ExportedProgram, graph: GraphModule) -> ir.Model:
    with keep_translations(), trust_known_types():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=PORTABLE_OPSET,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=[tensor.name for tensor in graph.outputs],
            custom_translation_table={op.torch_op: op.translate for op in CUSTOM_OPS.values()} | STANDARD_OPS,
            verbose=False,
            optimize=False,  # done by the caller, where weights can be left alone
        )
    assert exported is not None
    return exported.model


def export_stock(graph: GraphModule, dims: Mapping[str, Dim], inputs: Mapping[str, np.ndarray], path: Path) -> None:
    """What a user would have without this project: torch.onnx.export of the plain module, with its defaults, to `path`.

    The baseline of benchmarks; no part of a bundle.
    """
    arguments = tuple(torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs)
    with _quiet_exporter(), ops.plain_torch():
        torch.onnx.export(
            graph.module,
            arguments,
            path,
            dynamo=True,
            input_names=[tensor.name for tensor in graph.inputs],
            output_names=[tensor.name for tensor in graph.outputs],
            dynamic_shapes=make_dynamic_shapes(graph, dims),
            verbose=False,
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch.onnx prints, logs and warns about packages it does not need here; none of it is for our user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _decide_fold(node: ir.Node) -> bool | None:
    """False where folding would copy a weight: into another type, or transposed under a name that says nothing."""
    if node.op_type not in ("Cast", "Transpose") or not node.inputs or node.inputs[0] is None:
        return None
    tensor = node.inputs[0].const_value
    if tensor is None:
        return None
    return False if tensor.dtype in NARROW or tensor.size > _SMALL_ELEMENTS else None


def _find_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _rename_dims(model: ir.Model, graph: GraphModule) -> None:
    """torch calls dynamic sizes s27 and s77: give them the spec's names, everywhere they appear."""
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, graph.inputs, strict=True):
        assert value.shape is not None and value.name == tensor.name
        for size, wanted in zip(value.shape, tensor.shape, strict=True):
            if isinstance(wanted, str) and isinstance(size, ir.SymbolicDim) and size.value is not None:
                names[size.value] = wanted
    for value in _list_values(model):
        if value.shape is not None and any(isinstance(size, ir.SymbolicDim) for size in value.shape):
            value.shape = ir.Shape(
                [
                    names.get(size.value or "", size.value) if isinstance(size, ir.SymbolicDim) else size
                    for size in value.shape
                ]
            )
    for value, tensor in zip(model.graph.outputs, graph.outputs, strict=True):
        value.shape = ir.Shape(list(tensor.shape))


def _list_values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _mark_choices(model: ir.Model, graph: GraphModule) -> None:
    """Write on every node that the family keeps in float32, or out of int8, why it does."""
    kept = [(KEEP_KEY, pattern, f"{RANGE_REASON}: {reason}") for pattern, reason in graph.keep_float32]
    left = [(UNQUANTISED_KEY, pattern, reason) for pattern, reason in graph.unquantised]
    for node in model.graph.all_nodes():
        for key, pattern, reason in (*kept, *left):
            if fnmatch.fnmatchcase(node.metadata_props[MODULE_KEY], pattern):
                node.metadata_props[key] = reason


def _tidy_metadata(model: ir.Model, component: str) -> None:
    """Keep the module path (the component's name at its top); drop the rest: source lines and the machine's paths."""
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        node.metadata_props.clear()
        node.doc_string = None
        node.metadata_props[MODULE_KEY] = (scopes[-2] if len(scopes) >= 2 else "") or component
    for value in _list_values(model):
        value.metadata_props.clear()
        value.doc_string = None
    for initializer in model.graph.initializers.values():
        initializer.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None
