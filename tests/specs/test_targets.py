"""Targets as data, and whether a spec fits one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specs.errors import TargetError
from specs.graphs import count_macs, count_parameters
from specs.load import load_spec
from specs.schema import Dim, Spec
from specs.targets import GIB, estimate_fit, list_targets, load_target, require_fit

LOWERINGS = {"onnxruntime": 18, "tensorrt-8": 17, "tensorrt-10": 20, "tensorrt-11": 23}


def change(spec: Spec, **update: object) -> Spec:
    return spec.model_copy(update=update)


def test_every_target_and_platform_resolves() -> None:
    targets = list_targets()
    assert [target.name for target in targets] == sorted(target.name for target in targets)
    assert len(targets) == 12
    for target in targets:
        assert target.platform == target.platforms[0]
        for platform in target.platforms:
            one = load_target(f"{target.name}@{platform}")
            assert one.platform == platform
            assert one.opset == LOWERINGS[one.lowering]
            assert {"fp32", "fp16", "int8"} <= set(one.precisions)
            assert 0 < one.reserved_bytes < one.memory_bytes
            assert bool(one.jetpack) == (one.kind == "jetson")
            assert one.proof in ("run here", "compiled only", "not run") or one.name == "h200@trt8.6"


@pytest.mark.parametrize(
    ("name", "lowering", "tensorrt", "jetpack"),
    [
        ("jetson-orin-nx-16gb", "tensorrt-10", "10.3.0", "6.2"),
        ("jetson-orin-nx-16gb@jp60", "tensorrt-8", "8.6.2", "6.0"),
        ("jetson-agx-orin-64gb@jp72", "tensorrt-11", "10.16.2", "7.2"),
        ("jetson-thor-t5000", "tensorrt-10", "10.13", "7.0"),
        ("h200@trt8.6", "tensorrt-8", "8.6.x", ""),
        ("rtx-4090", "tensorrt-11", "TensorRT-RTX 1.x", ""),
        ("cpu", "onnxruntime", "", ""),
    ],
)
def test_platform_decides_the_compiler(name: str, lowering: str, tensorrt: str, jetpack: str) -> None:
    target = load_target(name)
    assert (target.name, target.lowering, target.tensorrt, target.jetpack) == (name, lowering, tensorrt, jetpack)


def test_precisions_follow_hardware_and_compiler() -> None:
    for name in ("jetson-orin-nano-8gb", "jetson-agx-orin-64gb@jp72", "a100", "h200@trt8.6", "cpu"):
        assert "fp8" not in load_target(name).precisions, name
    assert "bf16" not in load_target("h200@trt8.6").precisions
    assert "bf16" not in load_target("jetson-orin-nx-16gb@jp60").precisions
    assert "fp8" in load_target("h200").precisions


def test_nothing_is_called_proven_that_was_not() -> None:
    proofs = {target.name: target.proof for target in list_targets()}
    assert proofs.pop("cpu") == "run here"
    for name in ("rtx-3090", "rtx-4090", "rtx-5090"):
        assert proofs.pop(name) == "compiled only"
    assert set(proofs.values()) == {"not run"}
    assert load_target("rtx-4090@trt10.13").proof == "not run"
    assert load_target("h200@trt8.6").proof == "run on an H200, 2026-11-22"
    assert load_target("h200").proof == "not run"


def test_unknown_target() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("h20")
    assert str(caught.value) == (
        "unknown target 'h20'\n"
        "  allowed: a100, cpu, h100, h200, jetson-agx-orin-64gb, jetson-orin-nano-8gb, jetson-orin-nx-16gb,"
        " jetson-thor-t5000, l4, rtx-3090, rtx-4090, rtx-5090 (did you mean 'h200'?)\n"
        "  fix:     see them all: metagen-deploy targets"
    )
    for name in ("", "@", "h200@", "../cpu", "platforms", "cpu@ort@ort"):
        with pytest.raises(TargetError):
            load_target(name)


def test_parameters_of_the_zoo() -> None:
    assert sum(count_parameters(load_spec("image_vit_base")).values()) == 86_567_656
    assert sum(count_parameters(load_spec("text_llm_tiny")).values()) == 50_213_376
    clip = count_parameters(load_spec("multimodal_clip"))
    assert sum(clip.values()) == 834_954_753
    assert count_macs(load_spec("image_vit_base")) == {"classifier": 17_563_828_224}


def test_estimate_adds_up_and_follows_precision_and_dims() -> None:
    spec, target = load_spec("text_llm_tiny"), load_target("h200")
    half = estimate_fit(spec, target)
    assert half.fits
    assert half.parameters == 50_213_376
    assert half.weight_bytes == 2 * half.parameters
    assert half.total_bytes == half.weight_bytes + half.activation_bytes + half.cache_bytes + half.workspace_bytes
    assert half.cache_bytes == 2 * 8 * (2 * 12 * 2 * 64 * 2048 * 4)
    full = estimate_fit(change(spec, precision={"default": "fp32"}), target)
    assert full.weight_bytes == 2 * half.weight_bytes
    small = estimate_fit(change(spec, precision={"default": "int8"}), target)
    table = 32000 * 512
    assert small.weight_bytes == (half.parameters - table) + 4 * table
    longer = change(spec, dims={**spec.dims, "cache": Dim(min=1, opt=1, max=4096)})
    assert estimate_fit(longer, target).cache_bytes == 2 * half.cache_bytes


def test_estimates_by_hand() -> None:
    """Three copies of the widest layer and its scores, and the interface in float32; the smaller graph adds nothing."""
    target = load_target("h200")
    vit = load_spec("image_vit_base")
    batch = vit.dims["batch"].max
    assert vit.dims["batch"].opt < batch
    layer = batch * 197 * (4 * 768 + 3072) + batch * 12 * 197 * 197
    for precision, value_bytes in (("fp32", 4), ("fp16", 2), ("int8", 2)):
        fit = estimate_fit(change(vit, precision={"default": precision}), target)
        assert fit.activation_bytes == 3 * layer * value_bytes + 4 * batch * 3 * 224 * 224
        assert fit.weight_bytes == fit.parameters * {"fp32": 4, "fp16": 2, "int8": 1}[precision]
        assert fit.workspace_bytes == max(GIB // 4, 4 * fit.parameters)
    llm = load_spec("text_llm_tiny")
    batch, tokens = llm.dims["batch"].max, llm.dims["tokens"].max
    assert llm.dims["tokens"].opt < tokens and llm.dims["cache"].opt < llm.dims["cache"].max
    decoder = llm.components["decoder"]
    layer = batch * tokens * (4 * 512 + 2 * decoder.mlp_size) + batch * decoder.num_heads * tokens * tokens  # type: ignore[union-attr]
    assert estimate_fit(llm, target).activation_bytes == 3 * layer * 2 + 4 * batch * 32000
    clip = load_spec("multimodal_clip")
    parts = count_parameters(clip)
    fit = estimate_fit(clip, target)
    assert fit.workspace_bytes == 4 * max(parts.values()) < 4 * fit.parameters
    tower = clip.components["image_encoder"]
    batch = clip.dims["batch"].max
    layer = batch * 257 * (4 * 1280 + tower.mlp_width) + batch * 16 * 257 * 257  # type: ignore[union-attr]
    assert fit.activation_bytes == 3 * layer * 2 + 4 * batch * 3 * 224 * 224


def test_a_spec_fits_up_to_what_the_system_leaves() -> None:
    spec, target = load_spec("text_llm_tiny"), load_target("jetson-orin-nano-8gb")
    assert (target.memory_bytes, target.reserved_bytes) == (int(7.4 * GIB), int(1.5 * GIB))
    total = estimate_fit(spec, target).total_bytes
    for memory_bytes, fits in ((total + target.reserved_bytes, True), (total + target.reserved_bytes - 1, False)):
        assert estimate_fit(spec, replace(target, memory_bytes=memory_bytes)).fits == fits
    refused = change(load_spec("image_vit_base:tiny"), precision={"default": "bf16"})
    fit = estimate_fit(refused, load_target("h200@trt8.6"))
    assert fit.total_bytes < fit.available_bytes and not fit.fits


def test_every_zoo_spec_fits_the_targets_it_names() -> None:
    for name in ("image_vit_base", "image_vit_digits", "text_llm_tiny", "multimodal_clip", "multimodal_clip:tiny"):
        spec = load_spec(name)
        for target in spec.targets:
            assert require_fit(spec, load_target(target)).fits


def test_too_little_memory_is_refused_with_numbers() -> None:
    spec = load_spec("text_llm_tiny")
    greedy = change(spec, dims={**spec.dims, "batch": Dim(min=1, opt=1, max=64)})
    with pytest.raises(TargetError) as caught:
        require_fit(greedy, load_target("jetson-orin-nano-8gb"))
    fit = estimate_fit(greedy, load_target("jetson-orin-nano-8gb"))
    gib = {key: getattr(fit, f"{key}_bytes") / GIB for key in ("total", "weight", "activation", "cache", "workspace")}
    assert str(caught.value) == (
        "'text_llm_tiny' does not fit target 'jetson-orin-nano-8gb'\n"
        f"  got:     needs about {gib['total']:.2f} GiB (weights {gib['weight']:.2f}, activations"
        f" {gib['activation']:.2f}, KV cache {gib['cache']:.2f}, build workspace {gib['workspace']:.2f}),"
        " jetson-orin-nano-8gb has 5.90 GiB\n"
        "  allowed: 5.90 GiB: 7.40 GiB less 1.50 GiB for the system\n"
        "  fix:     lower dims.batch.max or dims.tokens.max or dims.cache.max, choose a lower precision, or another"
        " target"
    )


def test_precision_that_the_target_does_not_take() -> None:
    spec = change(load_spec("image_vit_base:tiny"), precision={"default": "bf16"})
    target = load_target("jetson-orin-nx-16gb@jp60")
    with pytest.raises(TargetError) as caught:
        require_fit(spec, target)
    assert str(caught.value) == (
        "target 'jetson-orin-nx-16gb@jp60' does not take bf16\n"
        "  where:   component 'classifier' of image_vit_base\n"
        "  allowed: fp32, fp16, int8\n"
        "  fix:     set precision.classifier to one of these, or choose another target"
    )
    assert estimate_fit(spec, target).verdict.startswith("does not fit: needs about")
    with pytest.raises(TargetError, match="does not take fp8"):
        require_fit(change(spec, precision={"default": "fp8"}), load_target("h200"))
