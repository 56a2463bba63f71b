"""Encoders, fusions and dynamics from Python: `from metagen_deploy.api import Vision, Audio, Fusion, INLDynamics`.

The same modules that a spec's components name, as torch modules with seeded weights. Needs the `export` extra.
"""

from __future__ import annotations

from specs.errors import translate_import_error

try:
    from specs.factories import (
        Audio,
        AudioConfig,
        AudioConvStack,
        Fusion,
        INLDynamics,
        PatchEmbedding,
        Vision,
        VisionConfig,
        VisionTransformer,
    )
except ImportError as error:
    raise translate_import_error(error, extra="export", needed_for="torch modules") from error

__all__ = [
    "Audio",
    "AudioConfig",
    "AudioConvStack",
    "Fusion",
    "INLDynamics",
    "PatchEmbedding",
    "Vision",
    "VisionConfig",
    "VisionTransformer",
]
