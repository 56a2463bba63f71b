"""FuseStep: a decode step -> nodes of two plugins, five a layer (TensorRT 8.6).

    norm, MatMul x 3 (or Gemm)              -> MetagenStepLinear       q, k, v
    rotation, MetagenCachedAttention        -> MetagenStepAttention
    MatMul, residual                        -> MetagenStepLinear
    norm, MetagenGatedLinear                -> MetagenStepLinear
    MatMul, residual                        -> MetagenStepLinear

A step of one token is many small kernels, and on a GPU each costs what it takes to start it: a layer of 20 of them is
6 with these plugins. Their kernels read a weight once for all rows and are made for few, so the batch must be known to
be small (`has_step`). What does not match stays and follows the ordinary path, and the log says why.

Behind the layers a norm and the head are one node more; the head reads its matrix as it lies, [N, K], which may be the
embedding's.

Not here: a norm that subtracts the mean, experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from exporters.passes.keep_plugins import PLUGIN_DOMAIN, PLUGIN_VERSION
from exporters.passes.shared.graph import Namer, describe_node, list_graphs, notes_of
from exporters.passes.step.attention import check_attention, find_batch, fuse_attention, is_cached_attention
from exporters.passes.step.linear import check_product, find_linears, fuse_linears, is_product
from exporters.passes.step.nodes import MAX_BATCH


def has_step(model: ir.Model, largest: Mapping[str, int]) -> bool:
    """Whether `FuseStep` would fire, and every step of the graph is of few rows. Looks at attention only.

    Needs the shapes that an export stores with its graph.

    Args:
        largest: the largest size of each dim that has a name; a batch of another name may be of any size.
    """
    batches = [find_batch(node) for graph in list_graphs(model) for node in _list_steps(graph)]
    sizes = [batch if isinstance(batch, int) else largest.get(batch) for batch in batches]
    return bool(sizes) and all(size is not None and size <= MAX_BATCH for size in sizes)


class FuseStep(ir.passes.InPlacePass):
    """Fires in graphs with a MetagenCachedAttention of one token, of few rows by `has_step`.

    Needs shapes (InferTypes), weights in float32 (WidenWeights), and no op inlined.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        namer = Namer(model)
        graphs = [graph for graph in list_graphs(model) if any(True for _ in _list_steps(graph))]
        for graph in graphs:
            _fuse(model, graph, namer)
        if graphs:
            model.opset_imports[PLUGIN_DOMAIN] = PLUGIN_VERSION
        return ir.passes.PassResult(model, modified=bool(graphs))


def _list_steps(graph: ir.Graph) -> Iterator[ir.Node]:
    """Attention of a decode step that the plugin takes."""
    return (node for node in graph if is_cached_attention(node) and check_attention(node) is None)


def _fuse(model: ir.Model, graph: ir.Graph, namer: Namer) -> None:
    log = notes_of(model).log
    batches = {find_batch(node) for node in _list_steps(graph)}
    attention = rotary = 0
    for node in list(graph):
        if not is_cached_attention(node):
            continue
        if reason := check_attention(node):
            log.append(f"FuseStep: {describe_node(node)} stays: {reason}")
            continue
        rotary += fuse_attention(graph, node, namer)
        attention += 1
    products = []
    for node in filter(is_product, graph):
        if reason := check_product(node, batches):
            log.append(f"FuseStep: {describe_node(node)} stays: {reason}")
        else:
            products.append(node)
    linears = find_linears(products)
    replaced: dict[ir.Value, ir.Value] = {}
    for group in linears:
        fuse_linears(graph, group, namer, replaced)
    log.append(
        f"FuseStep: {attention} nodes of attention became plugins, {rotary} with their rotation;"
        f" {len(products)} products became {len(linears)},"
        f" {sum(group[0].norm is not None for group in linears)} with their norm,"
        f" {sum(group[0].residual is not None for group in linears)} with their residual"
    )
