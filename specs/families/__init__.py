"""The families of models, one a file: FAMILIES lists them all. `specs.graphs` finds the one that a spec is of."""

from __future__ import annotations

from specs.families.autoencoding import ImageAutoencodingFamily
from specs.families.avatar import AvatarFamily
from specs.families.base import Family, GraphSpec
from specs.families.blocks import BlockGenerationFamily
from specs.families.classification import ImageClassificationFamily
from specs.families.codec import AudioCodecFamily
from specs.families.ctc import SpeechCtcFamily
from specs.families.denoising import ImageDenoisingFamily
from specs.families.generation import TextGenerationFamily
from specs.families.image_embedding import ImageEmbeddingFamily
from specs.families.media_text import MediaToTextFamily
from specs.families.mesh import TextToMeshFamily
from specs.families.multimodal_fusion import MultimodalFusionFamily
from specs.families.music import TextToAudioFamily
from specs.families.recognition import SpeechRecognitionFamily
from specs.families.similarity import ImageTextSimilarityFamily
from specs.families.speech import TextToSpeechFamily
from specs.families.text_embedding import TextEmbeddingFamily
from specs.families.text_to_image import TextToImageFamily
from specs.families.text_to_video import TextToVideoFamily

__all__ = ["FAMILIES", "Family", "GraphSpec"]

#: In the order in which errors list them. A spec's components fill the roles of exactly one.
FAMILIES: tuple[Family, ...] = (
    ImageClassificationFamily(),
    ImageEmbeddingFamily(),
    TextGenerationFamily(),
    MediaToTextFamily(),
    TextEmbeddingFamily(),
    ImageTextSimilarityFamily(),
    AudioCodecFamily(),
    TextToAudioFamily(),
    TextToSpeechFamily(),
    ImageAutoencodingFamily(),
    ImageDenoisingFamily(),
    TextToImageFamily(),
    SpeechRecognitionFamily(),
    SpeechCtcFamily(),
    AvatarFamily(),
    TextToMeshFamily(),
    BlockGenerationFamily(),
    TextToVideoFamily(),
    MultimodalFusionFamily(),
)
