"""Checkpoints as Hugging Face libraries save them -> spec and parameters. One family a file; IMPORTERS lists them.

    config.json --Importer.make_spec--> Spec        *.safetensors --Importer.map_tensors--> recipes --> parameters

No library of theirs is imported, no pickle read, no code of a checkpoint run.
"""

from __future__ import annotations

from exporters.checkpoints.autoencoder_kl import AutoencoderKlImporter
from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.bert import BertImporter
from exporters.checkpoints.clip import ClipImporter, ClipTextImporter, ClipVisionImporter
from exporters.checkpoints.encodec import EncodecImporter
from exporters.checkpoints.gemma import Gemma2Importer, Gemma3Importer, GemmaImporter
from exporters.checkpoints.gpt2 import Gpt2Importer
from exporters.checkpoints.llama import LlamaImporter, SmolLm3Importer
from exporters.checkpoints.llava import LlavaImporter
from exporters.checkpoints.mistral import MistralImporter
from exporters.checkpoints.mobilevit import MobileVitImporter
from exporters.checkpoints.musicgen import MusicgenImporter
from exporters.checkpoints.neox import NeoxImporter
from exporters.checkpoints.phi3 import Phi3Importer
from exporters.checkpoints.pixart import PixArtImporter
from exporters.checkpoints.qwen import Qwen2Importer, Qwen3Importer
from exporters.checkpoints.read import Checkpoint, open_checkpoint, read_spec, write_report
from exporters.checkpoints.resnet import ResNetImporter
from exporters.checkpoints.siglip import SiglipImporter, SiglipTextImporter, SiglipVisionImporter
from exporters.checkpoints.stable_diffusion import StableDiffusionImporter
from exporters.checkpoints.t5_encoder import T5EncoderImporter
from exporters.checkpoints.unet import UNetImporter
from exporters.checkpoints.vit import VitImporter
from exporters.checkpoints.vits import VitsImporter
from exporters.checkpoints.wav2vec2 import Wav2Vec2Importer
from exporters.checkpoints.whisper import WhisperImporter

__all__ = ["IMPORTERS", "Checkpoint", "Folder", "Importer", "open_checkpoint", "read_spec", "write_report"]

IMPORTERS: tuple[Importer, ...] = (
    LlamaImporter(),
    MistralImporter(),
    Qwen2Importer(),
    Qwen3Importer(),
    SmolLm3Importer(),
    Phi3Importer(),
    GemmaImporter(),
    Gemma2Importer(),
    Gemma3Importer(),
    Gpt2Importer(),
    NeoxImporter(),
    LlavaImporter(),
    BertImporter(),
    T5EncoderImporter(),
    VitImporter(),
    ResNetImporter(),
    MobileVitImporter(),
    ClipImporter(),
    ClipVisionImporter(),
    ClipTextImporter(),
    SiglipImporter(),
    SiglipVisionImporter(),
    SiglipTextImporter(),
    EncodecImporter(),
    MusicgenImporter(),
    AutoencoderKlImporter(),
    UNetImporter(),
    PixArtImporter(),
    StableDiffusionImporter(),
    WhisperImporter(),
    Wav2Vec2Importer(),
    VitsImporter(),
)
