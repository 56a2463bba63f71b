"""Host loops: what a whole model does with its graphs. The manifest's `pipeline.kind` picks one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.runtime.fields import take_field
from engines.runtime.pipelines.autoencoding import ImageAutoencoding
from engines.runtime.pipelines.avatar import Avatar
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.blocks import BlockGeneration
from engines.runtime.pipelines.classification import ImageClassification
from engines.runtime.pipelines.codec import AudioCodec
from engines.runtime.pipelines.ctc import SpeechCtc
from engines.runtime.pipelines.generation import TextGeneration
from engines.runtime.pipelines.image_embedding import ImageEmbedding
from engines.runtime.pipelines.media_text import MediaToText
from engines.runtime.pipelines.mesh import TextToMesh
from engines.runtime.pipelines.multimodal_fusion import MultimodalFusion
from engines.runtime.pipelines.music import TextToAudio
from engines.runtime.pipelines.recognition import SpeechRecognition
from engines.runtime.pipelines.similarity import ImageTextSimilarity
from engines.runtime.pipelines.speech import TextToSpeech
from engines.runtime.pipelines.tensors import Tensors
from engines.runtime.pipelines.text_embedding import TextEmbedding
from engines.runtime.pipelines.text_to_image import TextToImage
from engines.runtime.pipelines.text_to_video import TextToVideo
from specs.bundle import Manifest
from specs.errors import BundleError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.graph_session import GraphSession

PIPELINES: dict[str, type[Pipeline]] = {
    "image-classification": ImageClassification,
    "image-embedding": ImageEmbedding,
    "text-generation": TextGeneration,
    "media-to-text": MediaToText,
    "text-embedding": TextEmbedding,
    "image-text-similarity": ImageTextSimilarity,
    "image-autoencoding": ImageAutoencoding,
    "text-to-image": TextToImage,
    "audio-codec": AudioCodec,
    "text-to-audio": TextToAudio,
    "text-to-speech": TextToSpeech,
    "speech-recognition": SpeechRecognition,
    "speech-ctc": SpeechCtc,
    "avatar": Avatar,
    "multimodal-fusion": MultimodalFusion,
    "text-to-video": TextToVideo,
    "block-generation": BlockGeneration,
    "text-to-mesh": TextToMesh,
    "tensors": Tensors,
}


def open_pipeline(folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> Pipeline:
    """The host loop of a bundle; BundleError when its description is unknown or incomplete."""
    kind = take_field(manifest.pipeline, "kind", str)
    if kind not in PIPELINES:
        raise BundleError(
            f"manifest: unknown pipeline kind '{kind}'",
            where=str(folder),
            allowed=name_nearest(kind, PIPELINES),
            fix="export the bundle again, or upgrade metagen-deploy",
        )
    return PIPELINES[kind](folder, manifest, graphs)


__all__ = [
    "PIPELINES",
    "AudioCodec",
    "ImageClassification",
    "ImageEmbedding",
    "ImageTextSimilarity",
    "MediaToText",
    "Pipeline",
    "SpeechCtc",
    "SpeechRecognition",
    "Tensors",
    "TextEmbedding",
    "TextGeneration",
    "TextToAudio",
    "TextToSpeech",
    "open_pipeline",
]
