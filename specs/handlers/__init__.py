"""[torch] One handler a family: how its models are built, and what data they are tried with."""

from __future__ import annotations

from specs.graphs import find_family
from specs.handlers.autoencoding import ImageAutoencodingHandler
from specs.handlers.avatar import AvatarHandler
from specs.handlers.base import GraphModule, Handler
from specs.handlers.blocks import BlockGenerationHandler
from specs.handlers.classification import ImageClassificationHandler
from specs.handlers.codec import AudioCodecHandler
from specs.handlers.ctc import SpeechCtcHandler
from specs.handlers.denoising import ImageDenoisingHandler
from specs.handlers.generation import TextGenerationHandler
from specs.handlers.image_embedding import ImageEmbeddingHandler
from specs.handlers.media_text import MediaToTextHandler
from specs.handlers.mesh import TextToMeshHandler
from specs.handlers.multimodal_fusion import MultimodalFusionHandler
from specs.handlers.music import TextToAudioHandler
from specs.handlers.recognition import SpeechRecognitionHandler
from specs.handlers.similarity import ImageTextSimilarityHandler
from specs.handlers.speech import TextToSpeechHandler
from specs.handlers.text_embedding import TextEmbeddingHandler
from specs.handlers.text_to_image import TextToImageHandler
from specs.handlers.text_to_video import TextToVideoHandler
from specs.schema import Spec

__all__ = ["HANDLERS", "GraphModule", "Handler", "get_handler"]

#: family -> handler
HANDLERS: dict[str, Handler] = {
    "image-classification": ImageClassificationHandler(),
    "image-embedding": ImageEmbeddingHandler(),
    "text-generation": TextGenerationHandler(),
    "media-to-text": MediaToTextHandler(),
    "text-embedding": TextEmbeddingHandler(),
    "image-text-similarity": ImageTextSimilarityHandler(),
    "audio-codec": AudioCodecHandler(),
    "text-to-audio": TextToAudioHandler(),
    "text-to-speech": TextToSpeechHandler(),
    "image-autoencoding": ImageAutoencodingHandler(),
    "image-denoising": ImageDenoisingHandler(),
    "text-to-image": TextToImageHandler(),
    "avatar": AvatarHandler(),
    "speech-recognition": SpeechRecognitionHandler(),
    "speech-ctc": SpeechCtcHandler(),
    "text-to-mesh": TextToMeshHandler(),
    "block-generation": BlockGenerationHandler(),
    "text-to-video": TextToVideoHandler(),
    "multimodal-fusion": MultimodalFusionHandler(),
}


def get_handler(spec: Spec) -> Handler:
    """The handler of the family that the spec's components make.

    Raises:
        SpecError: no family is made of these components.
    """
    return HANDLERS[find_family(spec.components).kind]
