"""What makes an export fast changes no graph, and nothing of the process that it runs in."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch import nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes.type_promotion import _TypePromotionInterpreter

from exporters import lower, trace
from exporters.garbage import collect_rarely
from exporters.shortcuts import (
    keep_operators,
    keep_translations,
    skip_stack_traces,
    trust_known_types,
    try_fitting_rules,
)
from exporters.trace import choose_sizes
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.schema import Dim, TensorSpec


def test_the_collector_is_as_it_was() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), collect_rarely():
        assert gc.get_threshold()[0] > before[0]
        raise KeyError
    assert gc.get_threshold() == before


def test_a_collector_that_is_switched_off_stays_so() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(0)
        with collect_rarely():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_translations_are_read_once_and_are_torchs_own() -> None:
    own = ONNXRegistry.__dict__["from_torchlib"]
    with keep_translations():
        first, second = ONNXRegistry().from_torchlib(opset_version=18), ONNXRegistry().from_torchlib(opset_version=18)
        some = next(iter(first.functions))
        assert first.functions[some][0] is second.functions[some][0], "read once"
        first.functions[some].insert(0, first.functions[some][0])
        assert len(second.functions[some]) == len(first.functions[some]) - 1, "a custom translation stays in its export"
        usual = ONNXRegistry.from_torchlib()  # as torch asks while it reports what went wrong
        assert usual.functions.keys() == second.functions.keys()
    assert ONNXRegistry.__dict__["from_torchlib"] is own
    read = ONNXRegistry.from_torchlib(opset_version=18)
    assert {name: len(found) for name, found in read.functions.items()} == {
        name: len(found) for name, found in second.functions.items()
    }


class Mixed(nn.Module):
    """What types are promoted for, and what onnxscript's rules rewrite."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(1, 4, 3)
        self.order: torch.Tensor
        self.weak: torch.Tensor
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))
        self.register_buffer("weak", torch.tensor([0.5, 0.25], dtype=torch.float16))

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        share = n / 3 + x[:, :1] * n  # integers divided, and multiplied with float32
        share = torch.where(n > 0.5, share, 2) + self.weak.sum() + n.to(torch.float64).sum()
        padded = self.convolution(nn.functional.pad(x[:, None], (1, 1)))  # the rules put the padding into the Conv
        mixed = torch.relu(padded.clamp(min=-1)).clamp(max=3)[:, self.order].reshape(x.shape[0], 4, -1) * 1
        return share, mixed.flatten(1) + n.sum() + True, (n**2 + n.sum().sqrt()).to(torch.float32)


def make_mixed() -> tuple[GraphModule, dict[str, Dim], tuple[torch.Tensor, ...]]:
    def tensor(name: str, dtype: str, width: int) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=("batch", width))

    inputs = tensor("x", "float32", 8), tensor("n", "int64", 1)
    outputs = tensor("share", "float64", 1), tensor("mixed", "float32", 32), tensor("root", "float32", 1)
    module = Mixed().eval()
    graph = GraphModule(name="g", component="g", file_stem="m", module=module, inputs=inputs, outputs=outputs)
    return graph, {"batch": Dim(min=1, opt=2, max=8)}, (torch.randn(3, 8), torch.arange(3)[:, None])


def export_mixed() -> bytes:
    graph, dims, values = make_mixed()
    program = trace.trace(graph, dims, {t.name: v.numpy() for t, v in zip(graph.inputs, values, strict=True)})
    return dump(lower.lower(program, graph))


def export_family(name: str) -> list[bytes]:
    spec = load_spec(name)
    handler, sizes = get_handler(spec), choose_sizes(spec.dims, near=3)
    return [
        dump(lower.lower(trace.trace(graph, spec.dims, handler.make_inputs(spec, graph, sizes=sizes, seed=0)), graph))
        for graph in handler.build(spec)
    ]


def dump(model: ir.Model) -> bytes:
    """Nodes, names and types, weights too."""
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def take_no_shortcut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trace, "skip_stack_traces", contextlib.nullcontext)
    for name in ("trust_known_types", "try_fitting_rules"):
        patch.setattr(lower, name, contextlib.nullcontext)


@pytest.mark.parametrize("name", ["text_llm_8b:tiny", "image_cnn_resnet50:tiny"])
def test_graphs_are_the_same_without_shortcuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = export_family(name)
    take_no_shortcut(monkeypatch)
    assert fast == export_family(name)


def test_promoted_types_and_rewrites_are_the_same_without_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = export_mixed()
    take_no_shortcut(monkeypatch)
    assert fast == export_mixed()


def test_a_shortcut_that_promotes_no_type_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = export_mixed()
    monkeypatch.setattr(_TypePromotionInterpreter, "_maybe_promote_node", lambda self, node, rule: node)
    assert right != export_mixed()


def test_a_shortcut_that_passes_rules_over_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = export_mixed()
    monkeypatch.setattr(RewriteRule, "try_rewrite", lambda *_, **__: None)
    assert right != export_mixed()


def count_calls(patch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    calls: list[str] = []
    own = getattr(owner, name)

    def count(*arguments: object, **named: object) -> object:
        calls.append(name)
        return own(*arguments, **named)

    patch.setattr(owner, name, count)
    return calls


def test_shortcuts_spare_work(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_calls(monkeypatch, torch.fx.Interpreter, "run_node")
    tries = count_calls(monkeypatch, SimplePatternMatcher, "match")
    export_mixed()
    fast_runs, fast_tries = len(runs), len(tries)
    runs.clear()
    tries.clear()
    with monkeypatch.context() as patch:
        take_no_shortcut(patch)
        export_mixed()
    assert fast_runs < len(runs) / 1.5, "no operator is run again but those that a promotion changes"
    assert 0 < fast_tries < len(tries) / 10


class Spelled(nn.Module):
    """Operators that torch.onnx knows under another name only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, output_padding=1, groups=2)
        self.plain, self.norm = nn.ConvTranspose1d(6, 4, 3, bias=False), nn.BatchNorm1d(4, eps=1e-3)
        self.bare = nn.BatchNorm1d(4, affine=False)
        for norm in (self.norm, self.bare):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wave = self.bare(self.norm(self.plain(self.up(x.reshape(x.shape[0], 4, 2)))))
        both = (x > 0) & (n > 1)
        return both.to(torch.float32), wave.square().flatten(1), (n & (n + 1)) + 0.5


def test_operators_of_another_name_spare_the_second_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a lowering's time; and the graph computes what torch does, whichever way it was made."""
    graph, dims, values = make_mixed()
    outputs = tuple(
        TensorSpec(name=name, dtype="float32", shape=("batch", width))
        for name, width in (("a", 8), ("b", 28), ("c", 1))
    )
    graph = replace(graph, module=Spelled().eval(), outputs=outputs)
    wanted = [value.detach().numpy() for value in graph.module(*values)]
    inputs = {tensor.name: value.numpy() for tensor, value in zip(graph.inputs, values, strict=True)}
    traced = count_calls(monkeypatch, ExportedProgram, "run_decompositions")
    for spelled in (True, False):
        if not spelled:
            monkeypatch.setattr(lower, "_SPELLINGS", {})
        ir.save(lower.lower(trace.trace(graph, dims, inputs), graph), tmp_path / "m.onnx")
        assert bool(traced) is not spelled
        got = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, inputs)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())


def test_a_batch_norm_that_learns_is_left_to_torch() -> None:
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("x", "weight", "bias", "mean", "variance")]
    node = graph.call_function(torch.ops.aten.batch_norm.default, (*inputs, True, 0.1, 1e-5, False))
    lower._spell_batch_norm(node)
    assert node.target is torch.ops.aten.batch_norm.default and len(graph.nodes) == 6


def test_no_stack_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_stack() -> str | None:
        graph, dims, values = make_mixed()
        program = trace.trace(graph, dims, {t.name: v.numpy() for t, v in zip(graph.inputs, values, strict=True)})
        (node,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.conv1d.default)
        return str(node.stack_trace) if node.stack_trace else None

    assert find_stack() is None
    take_no_shortcut(monkeypatch)
    assert find_stack() is not None


@pytest.mark.parametrize(
    ("shortcut", "owner", "name"),
    [
        (skip_stack_traces, torch.fx.config, "do_not_emit_stack_traces"),
        (keep_translations, ONNXRegistry, "from_torchlib"),
        (keep_operators, _fx_passes, "decompose_with_registry"),
        (trust_known_types, _TypePromotionInterpreter, "run_node"),
        (try_fitting_rules, RewriteRule, "try_rewrite"),
    ],
)
def test_torch_is_as_it_was(
    shortcut: Callable[[], contextlib.AbstractContextManager[None]], owner: type, name: str
) -> None:
    before = owner.__dict__[name]
    with pytest.raises(KeyError), shortcut():
        assert owner.__dict__[name] is not before
        raise KeyError
    assert owner.__dict__[name] is before
