"""The custom ops: all five faces exist, and the ONNX body means what torch means."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from exporters.ops import CUSTOM_OPS, attach_bodies, registered_schemas
from exporters.ops.base import DOMAIN, DOMAIN_VERSION
from specs import ops

_SHAPES = {
    "MetagenAttention": [(2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8)],
    "MetagenCachedAttention": [(2, 4, 3, 8), (2, 2, 3, 8), (2, 2, 3, 8), (2, 2, 9, 8), (2, 2, 9, 8)],
    "MetagenGatedLinear": [(2, 5, 8), (12, 8), (12, 8)],
    "MetagenGatedFusion": [(3, 8), (3, 8), (8, 16), (8,)],
    "MetagenModalityFusion": [(3, 2, 8), (8,)],
    "MetagenAdaLayerNorm": [(2, 5, 8), (2, 1, 8), (2, 1, 8)],
    "MetagenGroupNormSilu": [(2, 8, 3, 5), (8,), (8,)],
    "MetagenGridSample3D": [(2, 3, 4, 5, 6), (2, 3, 4, 5, 3)],
}
_RANKS = {
    "MetagenGatedLinear": (3,),
    "MetagenAdaLayerNorm": (3,),
    "MetagenGroupNormSilu": (4,),
    "MetagenGridSample3D": (5,),
}
_EXTRA_INPUTS = {
    "MetagenCachedAttention": [torch.tensor([0, 4])],
    "MetagenModalityFusion": [torch.tensor([[True, True], [False, True], [False, False]])],
}
# torch's arguments after the tensors -> the node's attributes
_CASES: list[tuple[str, tuple[object, ...], dict[str, object]]] = [
    ("MetagenAttention", (None, 0.3, False, 0), {"scale": 0.3, "causal": 0, "window": 0, "groups": 2}),
    ("MetagenAttention", (None, 0.3, True, 0), {"scale": 0.3, "causal": 1, "window": 0, "groups": 2}),
    ("MetagenAttention", (None, 0.3, True, 2), {"scale": 0.3, "causal": 1, "window": 2, "groups": 2}),
    ("MetagenAttention", (None, 0.3, False, 2), {"scale": 0.3, "causal": 0, "window": 2, "groups": 2}),
    (
        "MetagenAttention",
        (None, 0.3, True, 0, 2.0),
        {"scale": 0.3, "causal": 1, "window": 0, "groups": 2, "softcap": 2.0},
    ),
    ("MetagenCachedAttention", (0.3,), {"scale": 0.3, "groups": 2}),
    ("MetagenCachedAttention", (0.3, 2), {"scale": 0.3, "groups": 2, "window": 2}),
    ("MetagenCachedAttention", (0.3, 4, 2.0), {"scale": 0.3, "groups": 2, "window": 4, "softcap": 2.0}),
    ("MetagenGatedLinear", ("silu",), {"activation": "silu"}),
    ("MetagenGatedLinear", ("gelu",), {"activation": "gelu"}),
    ("MetagenGatedLinear", ("gelu_tanh",), {"activation": "gelu_tanh"}),
    ("MetagenGatedFusion", (), {}),
    ("MetagenModalityFusion", (0.7,), {"scale": 8**-0.5 / 0.7}),
    ("MetagenAdaLayerNorm", (1e-6,), {"eps": 1e-6, "channels": 8}),
    ("MetagenGroupNormSilu", (4, 1e-5), {"groups": 4, "eps": 1e-5, "rank": 4}),
    ("MetagenGroupNormSilu", (1, 1e-6), {"groups": 1, "eps": 1e-6, "rank": 4}),
    ("MetagenGroupNormSilu", (4, 1e-5), {"groups": 4, "eps": 1e-5, "rank": 4, "rows": 5, "row": 6}),
    (  # every mode, padding and alignment: tests/exporters/ops/test_grid_sample_3d.py
        "MetagenGridSample3D",
        ("bilinear", "reflection", False),
        {"mode": "bilinear", "padding_mode": "reflection", "align_corners": 0},
    ),
]
# attribute -> a wrong value, which the comparison must notice
_MUTANTS: dict[str, object] = {
    "scale": 0.3 * 2**0.5,
    "causal": 1,
    "window": 3,
    "softcap": 3.0,
    "activation": "gelu_tanh",
    "eps": 1e-3,
    "mode": "nearest",
    "padding_mode": "border",
    "align_corners": 1,
}


def _make_tensors(name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) * 2 for shape in _SHAPES[name]]
    return [*drawn, *_EXTRA_INPUTS.get(name, [])]


def _run_body(name: str, tensors: list[torch.Tensor], attributes: dict[str, object]) -> list[np.ndarray]:
    """One custom node with its body, in ONNX Runtime. Weights are transposed, as the translation does."""
    if name.startswith("MetagenGated"):
        tensors = [t.T.contiguous() if t.dim() == 2 and i >= len(tensors) - 2 else t for i, t in enumerate(tensors)]
    op = CUSTOM_OPS[name]
    kinds = {torch.float32: ir.DataType.FLOAT, torch.int64: ir.DataType.INT64, torch.bool: ir.DataType.BOOL}
    inputs = [
        ir.Value(name=f"in{i}", type=ir.TensorType(kinds[t.dtype]), shape=ir.Shape(t.shape))
        for i, t in enumerate(tensors)
    ]
    attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]  # type: ignore[arg-type]
    node = ir.Node(DOMAIN, name, inputs, attrs, num_outputs=len(op.outputs))
    ranks = (4, 4, 4) if "Attention" in name else _RANKS.get(name, (2, 2))
    for output, out_name, rank in zip(node.outputs, op.outputs, ranks, strict=False):
        output.name, output.type, output.shape = out_name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * rank)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="g", opset_imports={"": 18, DOMAIN: DOMAIN_VERSION})
    model = ir.Model(graph, ir_version=10)
    attach_bodies(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {f"in{i}": t.numpy() for i, t in enumerate(tensors)})


def _run_torch(name: str, tensors: list[torch.Tensor], extra: tuple[object, ...]) -> list[np.ndarray]:
    result = CUSTOM_OPS[name].torch_op(*tensors, *extra)
    return [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]


def _relative_error(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(float(np.abs(g - w).max() / np.sqrt((w**2).mean())) for g, w in zip(got, wanted, strict=True))


def test_every_op_has_all_faces() -> None:
    assert {case[0] for case in _CASES} == set(CUSTOM_OPS)
    for op in CUSTOM_OPS.values():
        assert op.name.startswith("Metagen")
        assert not onnx.defs.has(op.name), "TensorRT's parser looks at the op type before the domain"
        assert op.translate.__doc__, "the ONNX schema's documentation"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.torch_op.name(), "Meta") or op.torch_op._schema


def test_schemas_do_not_stay_registered() -> None:
    with registered_schemas():
        assert onnx.defs.has("MetagenAttention", DOMAIN_VERSION, DOMAIN)
    assert not onnx.defs.has("MetagenAttention", DOMAIN_VERSION, DOMAIN)


@pytest.mark.parametrize(("name", "extra", "attributes"), _CASES)
def test_body_equals_torch(name: str, extra: tuple[object, ...], attributes: dict[str, object]) -> None:
    tensors = _make_tensors(name)
    assert _relative_error(_run_body(name, tensors, attributes), _run_torch(name, tensors, extra)) < 5e-6


@pytest.mark.parametrize(("name", "extra", "attributes"), _CASES)
def test_body_comparison_kills_mutants(name: str, extra: tuple[object, ...], attributes: dict[str, object]) -> None:
    tensors = _make_tensors(name)
    wanted = _run_torch(name, tensors, extra)
    for key in attributes.keys() & _MUTANTS.keys():
        if attributes[key] != _MUTANTS[key]:
            mutant = {**attributes, key: _MUTANTS[key]}
            assert _relative_error(_run_body(name, tensors, mutant), wanted) > 2e-5, key


@pytest.mark.parametrize(("name", "extra", "attributes"), _CASES)
def test_fake_rule_agrees_with_the_real_op(name: str, extra: tuple[object, ...], attributes: dict[str, object]) -> None:
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(CUSTOM_OPS[name].torch_op, (*_make_tensors(name), *extra), test_utils=tests)


def test_attention_body_takes_a_bias() -> None:
    q, k, v = _make_tensors("MetagenAttention")
    bias = torch.randn(1, 4, 1, 5, generator=torch.Generator().manual_seed(1))
    attributes = {"scale": 0.3, "causal": 1, "window": 0, "groups": 2}
    wanted = _run_torch("MetagenAttention", [q, k, v], (bias, 0.3, True, 0))
    assert _relative_error(_run_body("MetagenAttention", [q, k, v, bias], attributes), wanted) < 5e-6
    assert _relative_error(_run_body("MetagenAttention", [q, k, v], attributes), wanted) > 1e-2


@pytest.mark.parametrize(("heads", "causal"), list(itertools.product([1, 2, 4], [False, True])))
def test_attention_equals_torch_sdpa(heads: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(heads)
    q, k, v = (torch.randn(2, h, 6, 8, generator=generator) for h in (4, heads, heads))
    wanted = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(ops.attention(q, k, v, scale=8**-0.5, causal=causal), wanted)
    with ops.plain_torch():
        torch.testing.assert_close(ops.attention(q, k, v, scale=8**-0.5, causal=causal), wanted)


def test_cached_attention_equals_attention_over_what_the_cache_holds() -> None:
    q, k, v, past_k, past_v, start = _make_tensors("MetagenCachedAttention")
    out, new_k, new_v = ops.cached_attention(q, k, v, past_k, past_v, start, scale=0.3)
    for row, held in enumerate(start.tolist()):
        keys = torch.cat([past_k[row, :, :held], k[row]], 1)
        values = torch.cat([past_v[row, :, :held], v[row]], 1)
        mask = torch.ones(3, held + 3).tril(held).bool()
        wanted = functional.scaled_dot_product_attention(
            q[row], keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0), mask, scale=0.3
        )
        torch.testing.assert_close(out[row], wanted)
        torch.testing.assert_close(new_k[row, :, : held + 3], keys)
        torch.testing.assert_close(new_v[row, :, held + 3 :], past_v[row, :, held + 3 :])


def test_what_lies_beyond_the_cache_fill_has_no_influence() -> None:
    q, k, v, past_k, past_v, start = _make_tensors("MetagenCachedAttention")
    clean = ops.cached_attention(q, k, v, past_k, past_v, start, scale=0.3)[0]
    for row, held in enumerate(start.tolist()):
        past_k[row, :, held + 3 :] = 1e9
        past_v[row, :, held + 3 :] = -1e9
    torch.testing.assert_close(ops.cached_attention(q, k, v, past_k, past_v, start, scale=0.3)[0], clean)


def test_a_missing_modality_has_no_influence() -> None:
    features, query, presence = _make_tensors("MetagenModalityFusion")
    fused, weights = ops.modality_fusion(features, query, presence, temperature=0.7)
    features[1, 0] = 1e9
    again, _ = ops.modality_fusion(features, query, presence, temperature=0.7)
    torch.testing.assert_close(fused, again)
    assert weights[1].tolist() == [0.0, 1.0]
    assert fused[2].abs().max() == 0 and weights[2].sum() == 0, "nothing present: zeros, never NaN"


def test_norms_equal_what_models_spell_without_them() -> None:
    x, shift, scale = _make_tensors("MetagenAdaLayerNorm")
    wanted = functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    for drop in (lambda t: t, lambda t: t[:, 0]):
        torch.testing.assert_close(ops.ada_layer_norm(x, drop(shift), drop(scale), eps=1e-6), wanted)
    x, weight, bias = _make_tensors("MetagenGroupNormSilu")
    wanted = functional.silu(functional.group_norm(x, 4, weight, bias, 1e-5))
    torch.testing.assert_close(ops.group_norm_silu(x, weight, bias, groups=4, eps=1e-5), wanted)
    with ops.plain_torch():
        torch.testing.assert_close(ops.group_norm_silu(x, weight, bias, groups=4, eps=1e-5), wanted)


def test_norms_refuse_shapes_that_do_not_fit() -> None:
    x, shift, scale = _make_tensors("MetagenAdaLayerNorm")
    with pytest.raises(ValueError, match=r"shift and scale both \[B, C\] or \[B, 1, C\], got \[2, 5, 8\], \[2, 8\]"):
        ops.ada_layer_norm(x, shift[:, 0], scale, eps=1e-6)
    x, weight, bias = _make_tensors("MetagenGroupNormSilu")
    with pytest.raises(ValueError, match="C divisible by groups = 3"):
        ops.group_norm_silu(x, weight, bias, groups=3, eps=1e-5)


def test_equal_nodes_share_a_body_and_different_ones_do_not() -> None:
    class Two(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            once = ops.attention(q, k, v, scale=0.5)
            twice = ops.attention(once, k, v, scale=0.5)
            return ops.attention(twice, k, v, scale=0.5, causal=True)

    from exporters.lower import lower
    from specs.handlers import GraphModule
    from specs.schema import TensorSpec

    tensors = tuple(TensorSpec(name=n, dtype="float32", shape=(1, 2, 4, 8)) for n in "qkv")
    out = (TensorSpec(name="out", dtype="float32", shape=(1, 2, 4, 8)),)
    graph = GraphModule(name="g", component="g", file_stem="model", module=Two().eval(), inputs=tensors, outputs=out)
    program = torch.export.export(graph.module, tuple(torch.randn(1, 2, 4, 8) for _ in "qkv"), strict=False)
    assert sorted(key[2] for key in lower(program, graph).functions) == [
        "scale0.5_causal0_window0_groups1",
        "scale0.5_causal1_window0_groups1",
    ]


def _attend(**options: object) -> Callable[..., torch.Tensor]:
    return lambda q, k, v, *bias: ops.attention(q, k, v, *bias, scale=0.3, **options)  # type: ignore[arg-type]


def _normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return ops.group_norm_silu(x, weight, bias, groups=4, eps=1e-5)


_TRACED: dict[str, tuple[Callable[..., object], tuple[tuple[int, ...], ...]]] = {
    "grouped": (_attend(causal=True), ((2, 6, 4, 8), (2, 2, 4, 8), (2, 2, 4, 8))),
    "window": (_attend(causal=True, window=2), ((2, 2, 5, 8),) * 3),
    "with and without a bias": (
        lambda q, k, v, bias: _attend()(_attend()(q, k, v, bias), k, v),
        (*(((2, 2, 4, 8),) * 3), (2, 1, 4, 4)),
    ),
    "silu": (lambda x, g, u: ops.gated_linear(x, g, u, activation="silu"), ((2, 3, 8), (6, 8), (6, 8))),
    "gelu": (lambda x, g, u: ops.gated_linear(x, g, u, activation="gelu"), ((2, 3, 8), (6, 8), (6, 8))),
    "gelu_tanh": (lambda x, g, u: ops.gated_linear(x, g, u, activation="gelu_tanh"), ((2, 3, 8), (6, 8), (6, 8))),
    "gate": (ops.gated_fusion, ((3, 8), (3, 8), (8, 16), (8,))),
    "ada": (lambda x, s, t: ops.ada_layer_norm(x, s, t, eps=1e-6), ((2, 5, 8), (2, 8), (2, 8))),
    "ada, one row kept": (lambda x, s, t: ops.ada_layer_norm(x, s, t, eps=1e-6), ((2, 5, 8), (2, 1, 8), (2, 1, 8))),
    "grid sample": (ops.grid_sample_3d, ((2, 3, 4, 5, 6), (2, 3, 4, 5, 3))),
    "group norm 1-D": (_normalise, ((2, 8, 6), (8,), (8,))),
    "group norm 2-D": (_normalise, ((2, 8, 3, 5), (8,), (8,))),
    "group norm 3-D": (_normalise, ((2, 8, 3, 5, 2), (8,), (8,))),
    "modalities": (lambda f, q, p: ops.modality_fusion(f, q, p > 0, temperature=0.7)[0], ((3, 2, 8), (8,), (3, 2))),
}


@pytest.mark.parametrize("case", _TRACED)
def test_a_traced_op_answers_as_torch(case: str, tmp_path: Path) -> None:
    """The whole way: torch's arguments -> node and attributes -> body."""
    from exporters.lower import lower
    from specs.handlers import GraphModule
    from specs.schema import TensorSpec

    function, shapes = _TRACED[case]

    class Model(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> object:
            return function(*tensors)

    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(shape, generator=generator) * 2 for shape in shapes)
    module = Model().eval()
    wanted = module(*tensors)
    inputs = tuple(TensorSpec(name=f"in{i}", dtype="float32", shape=shape) for i, shape in enumerate(shapes))
    out = (TensorSpec(name="out", dtype="float32", shape=tuple(wanted.shape)),)
    graph = GraphModule(name="g", component="g", file_stem="model", module=module, inputs=inputs, outputs=out)
    model = lower(torch.export.export(module, tensors, strict=False), graph)
    assert any(node.domain == DOMAIN for node in model.graph)
    ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {f"in{i}": tensor.numpy() for i, tensor in enumerate(tensors)})
    assert _relative_error(got, [wanted.numpy()]) < 5e-6


def test_no_score_is_large_enough_to_be_seen_through_a_mask() -> None:
    q, k, v = _make_tensors("MetagenAttention")
    extra, attributes = (None, 1.0, True, 2), {"scale": 1.0, "causal": 1, "window": 2, "groups": 2}
    tensors = [q * 1e3, -k * 1e3, v]
    got = _run_body("MetagenAttention", tensors, attributes)
    assert _relative_error(got, _run_torch("MetagenAttention", tensors, extra)) < 1e-4
