"""What each target class makes of a graph: PIPELINES, literal lists of passes on one screen.

    custom ops (domain metagen)  --lower--> what the target has, or inlined bodies
                                 --opset--> what the target reads
                                 --type---> float16 / bfloat16 / int8 written into the graph
                                 --check--> valid ONNX, strongly typed

    lowering       opset   attention                int8
    onnxruntime    7-26    ONNX Attention, 3-D      by rows, contrib op; the rest float32
    tensorrt-8     7-17    pattern; masks of one query by Where; one token over a cache by selects
                                                    Q/DQ, float32 scales; the rest float32 (build with FP16)
    tensorrt-10    9-20    pattern                  Q/DQ, int8 weights; the rest float16
    tensorrt-11    9-24    ONNX Attention, 4-D; fp32: pattern    Q/DQ, int8 weights; the rest float16

    lowering       group norm + SiLU         3-D grid sample
    onnxruntime    body; large: sums in rows ONNX GridSample up to 8 channels, else the body
    tensorrt-8     body                      body, or the plugin
    tensorrt-10    body                      body, or the plugin
    tensorrt-11    GroupNormalization 21     body, or the plugin

    AffineGrid of known sizes: a product, for every TensorRT (`lower_affine_grid`)

    lowering       a decode step of one token, of 16 rows at most
    tensorrt-8     fp32, fp16: as above, or the plugins of linears and attention (`fuse_step`); int8: as above
    others         as above

fp16 for onnxruntime is how weights are stored; it computes in float32, as its CPU kernels do anyway.
There is no bf16 for onnxruntime (its CPU kernels take none) nor for tensorrt-8 (it has none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.passes.beginnings import Beginnings, Pipeline, run_passes
from exporters.passes.check_graph import CheckGraph
from exporters.passes.convert_to_float16 import ConvertToFloat16
from exporters.passes.flatten_tokens import FlattenTokens
from exporters.passes.fold_batch_norm import FoldBatchNorm
from exporters.passes.fold_integer_biases import FoldIntegerBiases
from exporters.passes.fold_transposed_weights import FoldTransposedWeights
from exporters.passes.fuse_gelu import FuseGelu
from exporters.passes.fuse_step import FuseStep, has_step
from exporters.passes.infer_types import InferTypes
from exporters.passes.inline_functions import InlineFunctions
from exporters.passes.int8.insert_dynamic_quantization import InsertDynamicQuantization
from exporters.passes.int8.insert_quantize_dequantize import InsertQuantizeDequantize
from exporters.passes.int8.ranges import Range, set_ranges
from exporters.passes.int8.scaling import Decided, set_decided
from exporters.passes.int8.weighted import find_weighted, list_activations
from exporters.passes.keep_plugins import KeepPlugins, has_plugin_ops
from exporters.passes.lower_affine_grid import LowerAffineGrid
from exporters.passes.lower_attention import LowerAttention
from exporters.passes.lower_cached_attention import LowerCachedAttention
from exporters.passes.lower_cached_step import LowerCachedStep
from exporters.passes.lower_grid_sample import LowerGridSample
from exporters.passes.lower_group_norm import LowerGroupNorm, UniteGroupNorm
from exporters.passes.mark_halves import MarkHalves
from exporters.passes.multiply_patches import MultiplyPatches
from exporters.passes.narrow_weights import NarrowWeights
from exporters.passes.select_masked_scores import SelectMaskedScores
from exporters.passes.set_opset import SetOpset
from exporters.passes.shared.graph import notes_of
from exporters.passes.slice_shapes import SliceShapes
from exporters.passes.spell_elu import SpellElu
from exporters.passes.store_narrow_weights import StoreNarrowWeights
from exporters.passes.widen_weights import WidenWeights
from specs.errors import TargetError, name_nearest

__all__ = [
    "PIPELINES",
    "Beginnings",
    "Decided",
    "PipelineResult",
    "Range",
    "copy_for_half",
    "copy_for_int8",
    "list_quantizable_tensors",
    "run_pipeline",
    "share_beginnings",
    "takes_plugins",
    "uses_ranges",
]

_BF16 = ir.DataType.BFLOAT16
# one object each, so that pipelines begin alike (`beginnings`)
_KEEP_PLUGINS, _INFER_TYPES, _AFFINE_GRID = KeepPlugins(), InferTypes(), LowerAffineGrid()
_FUSE_STEP: Pipeline = (WidenWeights(), _INFER_TYPES, FuseStep())
_MARK_HALVES: Pipeline = (MarkHalves(),)
_BODY: Pipeline = (
    InlineFunctions(),
    WidenWeights(),
    FoldBatchNorm(),
    FoldTransposedWeights(keep_tied=True),
    common.RemoveUnusedNodesPass(),
    _INFER_TYPES,
)
_END: Pipeline = (common.RemoveUnusedNodesPass(), CheckGraph())
#: ONNX Runtime folds Casts of weights when it loads: float32 weights keep the bytes of the portable graph.
_ORT_END: Pipeline = (StoreNarrowWeights(), *_END)
# TensorRT 11 has Attention kernels in half precision only; heads of 8 and of 320 channels failed on RTX 1.7
_TRT_HEADS = range(16, 257)

_ATTENTION_3D: Pipeline = (_INFER_TYPES, LowerAttention(fold_heads=True), LowerCachedAttention(scatter_elements=False))
_ATTENTION_4D: Pipeline = (
    _INFER_TYPES,
    LowerAttention(fold_heads=False, head_dims=_TRT_HEADS),
    LowerCachedAttention(scatter_elements=True, head_dims=_TRT_HEADS),
)

_ORT: Pipeline = (*_ATTENTION_3D, LowerGridSample(), *_BODY, FuseGelu(), SetOpset(minimum=7, maximum=26), _INFER_TYPES)
# QuantizeLinear exists from opset 10, with a scale a channel from 13
_ORT_INT8: Pipeline = (*_ORT, SetOpset(minimum=10, maximum=26), _INFER_TYPES)
_TRT8: Pipeline = (
    _INFER_TYPES,
    LowerCachedStep(),
    UniteGroupNorm(),
    *_BODY,
    _AFFINE_GRID,
    FoldIntegerBiases(),
    SelectMaskedScores(),
    MultiplyPatches(),
    FlattenTokens(),
    SetOpset(minimum=7, maximum=17),
    SliceShapes(),
    _INFER_TYPES,
)
_TRT8_INT8: Pipeline = (*_TRT8, SetOpset(minimum=13, maximum=17), _INFER_TYPES)
_TRT10_FORM: Pipeline = (UniteGroupNorm(), *_BODY, _AFFINE_GRID, FoldIntegerBiases())
_TRT10: Pipeline = (*_TRT10_FORM, SetOpset(minimum=9, maximum=20), _INFER_TYPES)
_TRT11_FORM: Pipeline = (LowerGroupNorm(), *_BODY, _AFFINE_GRID, FoldIntegerBiases(), FuseGelu(), SpellElu())
_TRT11: Pipeline = (*_TRT11_FORM, SetOpset(minimum=9, maximum=24), _INFER_TYPES)
_TRT11_HALF: Pipeline = (*_ATTENTION_4D, *_TRT11)
# float16 scales exist from opset 19
_TRT10_INT8: Pipeline = (*_TRT10_FORM, SetOpset(minimum=19, maximum=20), _INFER_TYPES)
_TRT11_INT8: Pipeline = (*_ATTENTION_4D, *_TRT11_FORM, SetOpset(minimum=19, maximum=24), _INFER_TYPES)

#: What plugins of a decode step are made for.
_STEPS = frozenset({("tensorrt-8", "fp32"), ("tensorrt-8", "fp16")})

PIPELINES: dict[tuple[str, str], Pipeline] = {
    ("onnxruntime", "fp32"): (*_ORT, *_ORT_END),
    ("onnxruntime", "fp16"): (*_ORT, NarrowWeights(), *_ORT_END),
    ("onnxruntime", "int8"): (*_ORT_INT8, FoldTransposedWeights(), InsertDynamicQuantization(), *_ORT_END),
    ("tensorrt-8", "fp32"): (*_TRT8, *_END),
    ("tensorrt-8", "fp16"): (*_TRT8, ConvertToFloat16(), *_END),
    ("tensorrt-8", "int8"): (*_TRT8_INT8, FoldTransposedWeights(), InsertQuantizeDequantize(fold_weights=False), *_END),
    ("tensorrt-10", "fp32"): (*_TRT10, *_END),
    ("tensorrt-10", "fp16"): (*_TRT10, ConvertToFloat16(), *_END),
    ("tensorrt-10", "bf16"): (*_TRT10, ConvertToFloat16(_BF16), *_END),
    ("tensorrt-10", "int8"): (
        *_TRT10_INT8,
        FoldTransposedWeights(),
        InsertQuantizeDequantize(fold_weights=True),
        ConvertToFloat16(),
        *_END,
    ),
    ("tensorrt-11", "fp32"): (*_TRT11, *_END),
    ("tensorrt-11", "fp16"): (*_TRT11_HALF, ConvertToFloat16(), *_END),
    ("tensorrt-11", "bf16"): (*_TRT11_HALF, ConvertToFloat16(_BF16), *_END),
    ("tensorrt-11", "int8"): (
        *_TRT11_INT8,
        FoldTransposedWeights(),
        InsertQuantizeDequantize(fold_weights=True),
        ConvertToFloat16(),
        *_END,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """A lowered, typed graph. `keep_fp32` holds "node: reason" for nodes above the asked precision."""

    model: ir.Model
    keep_fp32: tuple[str, ...]
    log: tuple[str, ...]


def share_beginnings(
    model: ir.Model, wanted: Sequence[tuple[str, str]], *, largest: Mapping[str, int] | None = None
) -> Beginnings:
    """`model` for several calls of `run_pipeline`, with these lowerings and precisions: done once, what is alike.

    Args:
        largest: the largest size of each dim that has a name; see `takes_plugins`.

    Raises:
        TargetError: there is no such pipeline.
    """
    pipelines = [_find_pipeline(lowering, precision) for lowering, precision in wanted]
    with_plugins = [_find_plugin_pipeline(model, *one, largest) for one in wanted]
    return Beginnings(model, [*pipelines, *(one for one in with_plugins if one is not None)])


def run_pipeline(
    model: ir.Model | Beginnings,
    *,
    lowering: str,
    precision: str,
    ranges: Mapping[str, Range] | None = None,
    decided: Decided | None = None,
    plugins: bool = False,
    largest: Mapping[str, int] | None = None,
) -> PipelineResult:
    """Lower a copy of `model`; weights are shared with it, and those that change are computed when they are written.

    Args:
        model: the portable graph, or what `share_beginnings` made of it.
        ranges: needed by int8 for TensorRT, of use to int8 for ONNX Runtime; of the tensors that
            `list_quantizable_tensors` names.
        decided: what earlier graphs decided about weights that this one may share; added to.
        plugins: leave to plugins what they can run (`takes_plugins`).
        largest: the largest size of each dim that has a name; see `takes_plugins`.

    Raises:
        TargetError: there is no such pipeline.
        GraphError: a node cannot be taken; names it and says why.
        CalibrationError: int8 without ranges.
    """
    passes = _find_pipeline(lowering, precision)
    begun = model if isinstance(model, Beginnings) else Beginnings(model)
    if plugins:
        passes = _find_plugin_pipeline(begun.model, lowering, precision, largest) or passes
    model, done = begun.start(passes)
    if ranges is not None:
        set_ranges(model, ranges)
    set_decided(model, {} if decided is None else decided)
    run_passes(model, passes, done=done)
    notes = notes_of(model)
    kept = tuple(f"{name}: {reason}" for name, reason in notes.keep_fp32.items())
    return PipelineResult(model=model, keep_fp32=kept, log=tuple(notes.log))


def takes_plugins(model: ir.Model, lowering: str, precision: str, *, largest: Mapping[str, int] | None = None) -> bool:
    """Whether `model`, lowered so, has nodes that a plugin could run.

    Args:
        largest: the largest size of each dim that has a name. Plugins of a decode step are made for few rows: they are
            left out where its batch has no fixed size and is not named here.
    """
    return _find_plugin_pipeline(model, lowering, precision, largest) is not None


def uses_ranges(lowering: str, precision: str) -> bool:
    """Whether this pipeline quantises: by calibrated ranges, or as is best for the rows of the calibration data."""
    quantises = (InsertQuantizeDequantize, InsertDynamicQuantization)
    return any(isinstance(step, quantises) for step in _find_pipeline(lowering, precision))


def list_quantizable_tensors(model: ir.Model) -> tuple[str, ...]:
    """The tensors of `model` whose range int8 needs, in graph order: inputs of products with a constant weight.

    Those inside a function body are not listed: they exist only once it is inlined, and stay in high precision.
    """
    visible = {value.name for value in model.graph.inputs}
    visible.update(value.name for node in model.graph for value in node.outputs)
    found = find_weighted(copy_for_int8(model).graph)
    return tuple(dict.fromkeys(name for name in list_activations(found) if name in visible))


def copy_for_int8(model: ir.Model) -> ir.Model:
    """A copy as int8 pipelines have it before anything is typed: functions inlined, weights as products take them."""
    copy = model.clone()
    for step in (*_BODY, FoldTransposedWeights()):
        step(copy)
    return copy


def copy_for_half(model: ir.Model, lowering: str, precision: str) -> ir.Model:
    """A copy with the operators that half pipelines type: functions inlined, those that the target's opset lacks too.

    Raises:
        TargetError, GraphError: as `run_pipeline` does.
    """
    copy = model.clone()
    operators = [step for step in _find_pipeline(lowering, precision) if isinstance(step, (LowerAffineGrid, SetOpset))]
    run_passes(copy, (*_BODY, *operators, _INFER_TYPES), done=())
    return copy


def _find_plugin_pipeline(
    model: ir.Model, lowering: str, precision: str, largest: Mapping[str, int] | None
) -> Pipeline | None:
    """The passes that leave to plugins what they can run; None where there is nothing of the kind."""
    passes = _find_pipeline(lowering, precision)
    keeps = lowering.startswith("tensorrt-") and has_plugin_ops(model)
    fuses = (lowering, precision) in _STEPS and has_step(model, largest or {})
    if not keeps and not fuses:
        return None
    step, marks = (_FUSE_STEP, _MARK_HALVES) if fuses else ((), ())
    return (*((_KEEP_PLUGINS,) if keeps else ()), *step, *passes, *marks)


def _find_pipeline(lowering: str, precision: str) -> Pipeline:
    if (lowering, precision) in PIPELINES:
        return PIPELINES[lowering, precision]
    lowerings = {name for name, _ in PIPELINES}
    if lowering not in lowerings:
        raise TargetError(
            f"unknown lowering '{lowering}'",
            allowed=name_nearest(lowering, lowerings),
            fix="choose one of these",
        )
    precisions = [name for known, name in PIPELINES if known == lowering]
    raise TargetError(f"{lowering} has no {precision}", allowed=", ".join(precisions), fix="choose another precision")
