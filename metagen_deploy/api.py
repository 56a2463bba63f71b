"""Encoders, fusions and dynamics from Python: `from metagen_deploy.api import Vision, Audio, Fusion, INLDynamics`.

The same modules that a spec's components name, as torch modules with seeded weights. And how a modality or a fusion
strategy of one's own is registered, so that a spec can name it. Needs the `export` extra.
"""

from __future__ import annotations

from specs.components import EncoderComponent, EncoderInput
from specs.components.fusion.multimodal import MultimodalFusionComponent, Stream, WeightsTensor
from specs.errors import translate_import_error

try:
    from specs.composing.audio import Audio, AudioConfig, AudioConvStack
    from specs.composing.extensions import load_extension, register_encoder, register_strategy
    from specs.composing.fusion import Fusion
    from specs.composing.vision import PatchEmbedding, Vision, VisionConfig, VisionTransformer
    from specs.models.fusion.multimodal import Fused, Seen, pool_tokens
    from specs.models.text.dynamics import INLDynamics
except ImportError as error:
    raise translate_import_error(error, extra="export", needed_for="torch modules") from error

__all__ = [
    "Audio",
    "AudioConfig",
    "AudioConvStack",
    "EncoderComponent",
    "EncoderInput",
    "Fused",
    "Fusion",
    "INLDynamics",
    "MultimodalFusionComponent",
    "PatchEmbedding",
    "Seen",
    "Stream",
    "Vision",
    "VisionConfig",
    "VisionTransformer",
    "WeightsTensor",
    "load_extension",
    "pool_tokens",
    "register_encoder",
    "register_strategy",
]
