"""The eager meaning and the fake-tensor rule of every custom op: the oracle that each lowering is compared with.

A custom op is a named boundary around a real body. Here is the body in torch, one op a file; `exporters/ops/` holds the
same body in ONNX, and the passes hold what each target class turns it into. Models call the wrappers named below:
`from specs import ops`, then `ops.attention(...)`.

Shape letters: B batch, T query sequence, S key/value sequence, H heads, K key/value heads, D head dim, C channels,
F hidden width of a gated layer, M modalities.

Not here: dropout and other training-only behaviour.
"""

from specs.ops._ada_layer_norm import ada_layer_norm
from specs.ops._attention import attention, cached_attention
from specs.ops._gated_fusion import gated_fusion
from specs.ops._gated_linear import GateActivation, gated_linear
from specs.ops._grid_sample_3d import PaddingMode, SampleMode, grid_sample_3d
from specs.ops._group_norm_silu import group_norm_silu
from specs.ops._lstm import lstm
from specs.ops._modality_fusion import modality_fusion
from specs.ops._plain import open_bodies, plain_torch

__all__ = [
    "GateActivation",
    "PaddingMode",
    "SampleMode",
    "ada_layer_norm",
    "attention",
    "cached_attention",
    "gated_fusion",
    "gated_linear",
    "grid_sample_3d",
    "group_norm_silu",
    "lstm",
    "modality_fusion",
    "open_bodies",
    "plain_torch",
]
