"""The reference modules: their sizes, their mathematics against independent formulas, and that they export."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional

from specs.components import ClipTextComponent, DecoderComponent, FusionComponent, VisionTransformerComponent
from specs.graphs import count_parameters
from specs.handlers import GraphModule, get_handler
from specs.load import load_spec
from specs.models.fusion.pair import FUSIONS
from specs.models.layers import Mlp, activate
from specs.models.text.causal import Decode, Prefill
from specs.models.text.clip import ClipText
from specs.models.text.decoder import Decoder
from specs.models.text.rope import Angles, compute_angles, list_frequencies, rotate
from specs.models.vision.vit import VisionTransformer
from specs.parameters.fill import fill_parameters
from specs.schema import Spec, WeightsSpec

TINY = ("image_vit_base:tiny", "image_vit_digits", "text_llm_tiny:tiny", "multimodal_clip:tiny")


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    fill_parameters({"it": module}, WeightsSpec(seed=seed), dtype=torch.float32)
    return module.eval()


def run(graph: GraphModule, sizes: dict[str, int], spec: Spec, seed: int = 0) -> tuple[Tensor, ...]:
    inputs = get_handler(spec).make_inputs(spec, graph, sizes=sizes, seed=seed)
    with torch.no_grad():
        out = graph.module(*map(torch.from_numpy, inputs.values()))
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", [*TINY, "image_vit_base", "text_llm_tiny"])
def test_parameters_are_as_many_as_the_spec_counts(name: str) -> None:
    spec = load_spec(name)
    by_component: dict[str, set[Tensor]] = {}
    for graph in get_handler(spec).build(spec):
        by_component.setdefault(graph.component, set()).update(graph.module.parameters())
    assert {n: sum(p.numel() for p in ps) for n, ps in by_component.items()} == count_parameters(spec)


@pytest.mark.parametrize("kind", sorted(FUSIONS))
def test_fusion_parameters(kind: str) -> None:
    spec = load_spec("multimodal_clip:tiny")
    if kind == "fusion.sigmoid":
        text = spec.components["text_encoder"].model_copy(update={"projection_size": 64})
        changed = {"text_encoder": text, "fusion": FusionComponent(kind=kind)}
    else:
        changed = {"fusion": FusionComponent.model_validate({"kind": kind, "projection_size": 24})}
    spec = spec.model_copy(update={"components": {**spec.components, **changed}})
    (graph,) = [g for g in get_handler(spec).build(spec) if g.component == "fusion"]
    assert sum(p.numel() for p in graph.module.parameters()) == count_parameters(spec)["fusion"]
    outputs = run(graph, {"batch": 5}, spec)
    assert [tuple(o.shape) for o in outputs] == [
        tuple(5 if d == "batch" else d for d in t.shape) for t in graph.outputs
    ]
    assert all(torch.isfinite(o).all() for o in outputs)


def test_untied_decoder_counts_its_head() -> None:
    config = DecoderComponent(
        kind="text.decoder",
        vocab_size=50,
        hidden_size=16,
        num_layers=1,
        num_heads=4,
        num_kv_heads=1,
        head_dim=6,
        mlp_size=20,
        tie_embeddings=False,
    )
    assert sum(p.numel() for p in Decoder(config).parameters()) == config.count_parameters()


@pytest.mark.parametrize("name", TINY)
def test_graphs_have_the_shapes_they_declare(name: str) -> None:
    spec = load_spec(name)
    sizes = {"batch": 3, "tokens": 7, "cache": 17}
    for graph in get_handler(spec).build(spec):
        outputs = run(graph, sizes, spec)
        assert len(outputs) == len(graph.outputs)
        for declared, got in zip(graph.outputs, outputs, strict=True):
            assert tuple(got.shape) == tuple(sizes[d] if isinstance(d, str) else d for d in declared.shape), (
                declared.name
            )
            assert str(got.dtype) == f"torch.{declared.dtype}"


@pytest.mark.parametrize("name", TINY)
def test_graphs_export_with_every_size_of_their_dims(name: str) -> None:
    spec = load_spec(name)
    dims = {n: Dim(n, min=d.min, max=d.max) for n, d in spec.dims.items()}
    for graph in get_handler(spec).build(spec):
        inputs = get_handler(spec).make_inputs(spec, graph, sizes={"batch": 3, "tokens": 7, "cache": 17}, seed=0)
        shapes = [{i: dims[d] for i, d in enumerate(t.shape) if isinstance(d, str)} for t in graph.inputs]
        nested = (*shapes[:2], tuple(shapes[2:])) if graph.file_stem == "decode" else tuple(shapes)
        program = export(
            graph.module, tuple(map(torch.from_numpy, inputs.values())), dynamic_shapes=nested, strict=False
        )
        used = {d for t in graph.inputs for d in t.shape if isinstance(d, str)}
        ranges = {(int(r.lower), int(r.upper)) for r in program.range_constraints.values()}
        assert ranges == {(spec.dims[d].min, spec.dims[d].max) for d in used}, "a dim was specialised"
        for pick in ("min", "max"):
            sizes = {n: min(getattr(d, pick), 40) for n, d in spec.dims.items()}
            values = tuple(
                map(torch.from_numpy, get_handler(spec).make_inputs(spec, graph, sizes=sizes, seed=1).values())
            )
            with torch.no_grad():
                expected, got = graph.module(*values), program.module()(*values)
            for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (expected, got)), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_vision_transformer_against_torchs_own_encoder() -> None:
    config = VisionTransformerComponent(
        kind="vision.vit",
        image_size=8,
        patch_size=4,
        hidden_size=24,
        num_layers=2,
        num_heads=3,
        num_classes=5,
        layer_norm_eps=1e-5,
        image_mean=(0.1, 0.2, 0.3),
        image_std=(0.5, 0.6, 0.7),
    )
    model: Any = fill(VisionTransformer(config))
    image = torch.rand(2, 3, 8, 8)
    x = (image - torch.tensor(config.image_mean)[:, None, None]) / torch.tensor(config.image_std)[:, None, None]
    patches = functional.unfold(x, 4, stride=4).transpose(1, 2) @ model.patch_embedding.weight.flatten(1).T
    x = (
        torch.cat([model.class_token.expand(2, 1, -1), patches + model.patch_embedding.bias], 1)
        + model.position_embedding
    )
    layers: Any = model.layers
    for layer in layers:
        reference = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        state = {
            "self_attn.in_proj_weight": layer.attention.qkv.weight, "self_attn.in_proj_bias": layer.attention.qkv.bias,
            "self_attn.out_proj.weight": layer.attention.out.weight,
            "self_attn.out_proj.bias": layer.attention.out.bias,
            "linear1.weight": layer.mlp.up.weight, "linear1.bias": layer.mlp.up.bias,
            "linear2.weight": layer.mlp.down.weight, "linear2.bias": layer.mlp.down.bias,
            "norm1.weight": layer.attention_norm.weight, "norm1.bias": layer.attention_norm.bias,
            "norm2.weight": layer.mlp_norm.weight, "norm2.bias": layer.mlp_norm.bias,
        }  # fmt: skip
        reference.load_state_dict(state)
        x = reference(x)  # train mode: its fast path rounds differently
    expected = model.head(model.output_norm(x)[:, 0])
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["image_vit_base:tiny", "multimodal_clip:tiny"])
def test_every_layer_takes_the_spec_s_epsilon_and_activation(name: str) -> None:
    spec = load_spec(name)
    parts = {
        part: config.model_copy(update={"layer_norm_eps": 3e-4, "activation": "gelu_tanh"})
        if isinstance(config, VisionTransformerComponent | ClipTextComponent)
        else config
        for part, config in spec.components.items()
    }
    changed = spec.model_copy(update={"components": parts})
    for graph in get_handler(changed).build(changed):
        norms = {module.eps for module in graph.module.modules() if isinstance(module, nn.LayerNorm)}
        activations = {module.activation for module in graph.module.modules() if isinstance(module, Mlp)}
        assert (norms, activations) == (({3e-4}, {"gelu_tanh"}) if norms else (set(), set()))
    for graph in get_handler(spec).build(spec):
        activations = {module.activation for module in graph.module.modules() if isinstance(module, Mlp)}
        wanted = {"classifier": {"gelu"}, "fusion": set()}.get(graph.component, {"quick_gelu"})
        assert activations == wanted, graph.component


@pytest.mark.parametrize("name", ["image_vit_base:tiny", "text_llm_tiny:tiny", "multimodal_clip:tiny"])
def test_every_parameter_has_an_influence(name: str) -> None:
    """A norm, a position or a bias that is left out changes no shape: only this notices."""
    spec = load_spec(name)
    handler = get_handler(spec)
    for graph in handler.build(spec):
        sizes = {name: max(dim.min, min(dim.max, 3 + index)) for index, (name, dim) in enumerate(spec.dims.items())}
        inputs = handler.make_inputs(spec, graph, sizes=sizes, seed=0)
        arguments = [torch.from_numpy(inputs[tensor.name]) for tensor in graph.inputs]

        def run(module: nn.Module = graph.module, arguments: list[Tensor] = arguments) -> list[Tensor]:
            with torch.inference_mode():
                result = module(*arguments)
            return list(result) if isinstance(result, tuple) else [result]

        before = run()
        for path, parameter in graph.module.named_parameters():
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            changed = any(not torch.equal(a, b) for a, b in zip(before, run(), strict=True))
            with torch.no_grad():
                parameter.copy_(kept)
            assert changed, f"{graph.name}: {path}"


def test_activations() -> None:
    x = torch.linspace(-4, 4, 801)
    exact = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(activate(x, "gelu"), exact)
    torch.testing.assert_close(activate(x, "quick_gelu"), x / (1 + (-1.702 * x).exp()))
    difference = (activate(x, "gelu_tanh") - exact).abs().max()
    assert 4e-4 < difference < 4.74e-4


def test_clip_text_reads_the_end_of_text_and_ignores_what_follows() -> None:
    config = ClipTextComponent(
        kind="text.clip", vocab_size=30, context_length=9, hidden_size=16, num_layers=2, num_heads=2
    )
    model = fill(ClipText(config))
    ids = torch.tensor([[3, 4, 5, 29, 0, 0, 0, 0, 0], [3, 4, 5, 29, 7, 8, 9, 1, 2], [3, 4, 6, 29, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        out = model(ids)
    torch.testing.assert_close(out[0], out[1], rtol=1e-5, atol=1e-6)
    assert (out[0] - out[2]).abs().max() > 0.05


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_rotary_angles_by_hand(theta: float) -> None:
    width, position = 16, 30_001
    frequencies = list_frequencies(theta, width)
    by_hand = np.array([theta ** (-2 * p / width) for p in range(width // 2)])
    np.testing.assert_allclose(frequencies, by_hand, rtol=2e-7)
    assert [float(np.float32(f)) for f in frequencies] == list(frequencies), "rounded to float32, as published"
    angles = position * np.array(frequencies)
    cos, sin = compute_angles(torch.tensor([[position]]), frequencies, torch.float64)
    assert np.abs(cos.numpy().reshape(-1) - np.cos(angles)).max() < 1e-9
    assert np.abs(sin.numpy().reshape(-1) - np.sin(angles)).max() < 1e-9
    exact = compute_angles(torch.tensor([[position]]), frequencies, torch.float32)[0]
    half = compute_angles(torch.tensor([[position]]), frequencies, torch.float16)[0]
    assert torch.equal(half, exact.to(torch.float16)), "rounded at the end, not before the cosine"


def test_rotary_positions_are_a_rotation_and_relative() -> None:
    width = 16
    frequencies = list_frequencies(1e4, width)
    q, k = torch.randn(2, 1, 1, 1, width).unbind()

    def angles_at(position: int, dtype: torch.dtype = torch.float32) -> Angles:
        return compute_angles(torch.tensor([[position]]), frequencies, dtype)

    def score(query_at: int, key_at: int) -> Tensor:
        a, b = rotate(q, angles_at(query_at)), rotate(k, angles_at(key_at))
        torch.testing.assert_close(a.norm(), q.norm())
        return (a * b).sum()

    torch.testing.assert_close(score(5, 3), score(105, 103), rtol=1e-4, atol=1e-4)
    assert abs(float(score(5, 3) - score(5, 4))) > 1e-3
    cos, _ = angles_at(2047, torch.float16)
    np.testing.assert_allclose(cos[0, 0, 0].float().numpy(), np.cos(2047 * np.array(frequencies)), atol=2e-3)


def test_channels_beyond_the_rotary_share_have_no_position() -> None:
    x = torch.randn(1, 2, 3, 16)
    turned = rotate(x, compute_angles(torch.tensor([[1, 2, 3]]), list_frequencies(1e4, 12), x.dtype))
    assert torch.equal(turned[..., 12:], x[..., 12:])
    assert not torch.isclose(turned[..., :12], x[..., :12]).all()


@pytest.fixture(scope="module")
def decoder() -> tuple[Spec, Decoder]:
    spec = load_spec("text_llm_tiny:tiny")
    module = get_handler(spec).build(spec)[0].module
    assert isinstance(module, Prefill)
    return spec, module.decoder


def decode_all(decoder: Decoder, ids: Tensor, lengths: Tensor, prompt: int, capacity: int) -> list[Tensor]:
    """Logits after the prompt, and after each further token of `ids`, through the cache."""
    prefill, decode = Prefill(decoder), Decode(decoder)
    with torch.no_grad():
        logits, *cache = prefill(ids[:, :prompt], lengths)
        steps = [logits]
        cache = [functional.pad(c, (0, 0, 0, capacity - prompt), value=7.0) for c in cache]  # stale data, not zeros
        for step in range(ids.shape[1] - prompt):
            logits, *cache = decode(ids[:, prompt + step, None], lengths + step, *cache)
            steps.append(logits)
    return steps


def test_prefill_and_decode_equal_one_full_forward(decoder: tuple[Spec, Decoder]) -> None:
    ids = torch.randint(0, 512, (3, 12), generator=torch.Generator().manual_seed(0))
    steps = decode_all(decoder[1], ids, torch.full((3,), 5), prompt=5, capacity=16)
    with torch.no_grad():
        for count, logits in zip(range(5, 13), steps, strict=True):
            full = Prefill(decoder[1])(ids[:, :count], torch.full((3,), count))[0]
            torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-4)


def test_padding_of_ragged_rows_is_harmless(decoder: tuple[Spec, Decoder]) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 512, (3, 10), generator=generator)
    lengths = torch.tensor([2, 6, 4])
    ragged = decode_all(decoder[1], ids, lengths, prompt=6, capacity=12)
    for row, length in enumerate(lengths.tolist()):
        own = torch.cat([ids[row : row + 1, :length], ids[row : row + 1, 6:]], dim=1)
        alone = decode_all(decoder[1], own, torch.tensor([length]), prompt=length, capacity=12)
        for a, b in zip(ragged, alone, strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=1e-4, atol=1e-4)


def test_prefill_against_a_plain_formula(decoder: tuple[Spec, Decoder]) -> None:
    """One layer after another in complex arithmetic, without any of the modules' forwards."""
    model, config = decoder[1], decoder[1].config
    ids = torch.randint(0, 512, (1, 6), generator=torch.Generator().manual_seed(2))
    heads, kv, width = config.num_heads, config.kv_heads, config.head_width

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turn(x: Tensor) -> Tensor:
        frequency = torch.tensor(config.rope_theta) ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(6)[:, None] * frequency
        z = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    with torch.no_grad():
        x = model.token_embedding.weight[ids[0]]
        layers: Any = model.layers
        for layer in layers:
            h = norm(x, layer.attention_norm.weight)
            q = turn((h @ layer.attention.query.weight.T).view(6, heads, width).transpose(0, 1))
            k = turn((h @ layer.attention.key.weight.T).view(6, kv, width).transpose(0, 1))
            v = (h @ layer.attention.value.weight.T).view(6, kv, width).transpose(0, 1)
            out = []
            for head in range(heads):
                scores = q[head] @ k[head * kv // heads].T / math.sqrt(width)
                scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
                out.append(scores.softmax(-1) @ v[head * kv // heads])
            x = x + torch.cat(out, -1) @ layer.attention.out.weight.T
            h = norm(x, layer.mlp_norm.weight)
            gate = h @ layer.mlp.gate.weight.T
            x = x + (gate / (1 + (-gate).exp()) * (h @ layer.mlp.up.weight.T)) @ layer.mlp.down.weight.T
        expected = norm(x[-1], model.output_norm.weight) @ model.token_embedding.weight.T
        got = Prefill(model)(ids, torch.tensor([6]))[0][0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_late_fusion_gives_unit_embeddings_and_scaled_cosines() -> None:
    spec = load_spec("multimodal_clip:tiny")
    graph = get_handler(spec).build(spec)[-1]
    image, text, similarity = run(graph, {"batch": 4}, spec)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(similarity, image @ text.T / 0.07, rtol=1e-4, atol=1e-4)


def test_attention_fusion_without_modalities_gives_zeros() -> None:
    config = FusionComponent(kind="fusion.attention", projection_size=8, temperature=0.5)
    model = fill(FUSIONS[config.kind](config, image_size=6, text_size=4))
    presence = torch.tensor([[True, True], [True, False], [False, False]])
    with torch.no_grad():
        embedding, weights = model(torch.randn(3, 6), torch.randn(3, 4), presence)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([1.0, 1.0, 0.0]))
    assert weights[1, 1] == 0
    assert not embedding[2].any()


def test_fusions_against_plain_formulas() -> None:
    """Which feature comes first, and what the gate, the temperature and the query do with them."""
    image, text = torch.randn(3, 6), torch.randn(3, 4)
    gated = FusionComponent(kind="fusion.gated", projection_size=8)
    model = fill(FUSIONS["fusion.gated"](gated, image_size=6, text_size=4))
    with torch.inference_mode():
        a, b = image @ model.projection.image.weight.T, text @ model.projection.text.weight.T
        gate = torch.sigmoid(torch.cat([a, b], 1) @ model.gate.weight.T + model.gate.bias)
        torch.testing.assert_close(model(image, text), gate * a + (1 - gate) * b)
    config = FusionComponent(kind="fusion.attention", projection_size=8, temperature=0.25)
    model = fill(FUSIONS["fusion.attention"](config, image_size=6, text_size=4))
    presence = torch.tensor([[True, True], [True, False], [False, True]])
    with torch.inference_mode():
        a, b = image @ model.projection.image.weight.T, text @ model.projection.text.weight.T
        scores = torch.stack([a @ model.query, b @ model.query], 1) / (8**0.5 * 0.25)
        wanted = scores.masked_fill(~presence, -math.inf).softmax(1)
        embedding, weights = model(image, text, presence)
        torch.testing.assert_close(weights, wanted)
        torch.testing.assert_close(embedding, wanted[:, :1] * a + wanted[:, 1:] * b)
