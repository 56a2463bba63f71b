"""The kinds of component a spec can name, as frozen configurations: COMPONENTS lists them all.

A configuration knows its sizes and counts its parameters without torch, so that `show` and the target check run on
any machine; `specs/models/` holds the modules built from them, and a test compares the two counts.
"""

from __future__ import annotations

from specs.components.audio.encodec import EncodecComponent
from specs.components.audio.hifigan import HifiganComponent
from specs.components.audio.musicgen import MusicgenComponent
from specs.components.audio.vits import VitsDurationComponent, VitsFlowComponent, VitsTextComponent
from specs.components.audio.wav2vec2 import Wav2Vec2Component
from specs.components.audio.whisper import WhisperDecoderComponent, WhisperEncoderComponent
from specs.components.avatar import AppearanceComponent, MotionComponent, RendererComponent
from specs.components.base import MOST_LAYERS, Activation, Activations, Component, LayerCount, Size, TransformerSizes
from specs.components.blocks import BlockDecoderComponent, ModeComponent, StructureComponent
from specs.components.diffusion.autoencoder import VaeComponent
from specs.components.diffusion.dit import DitComponent
from specs.components.diffusion.scheduler import SchedulerComponent
from specs.components.diffusion.unet import UNetComponent
from specs.components.encoder import EncoderComponent, EncoderInput
from specs.components.fusion.multimodal import MultimodalFusionComponent
from specs.components.fusion.pair import FusionComponent
from specs.components.fusion.projector import ProjectorComponent
from specs.components.fusion.resampling import PerceiverComponent
from specs.components.mesh import FieldComponent, TriplaneComponent
from specs.components.sensor import PointsComponent, SeriesComponent
from specs.components.text.clip import ClipTextComponent
from specs.components.text.decoder import CausalComponent, DecoderComponent, Gpt2Component, NeoxComponent
from specs.components.text.encoder import BertComponent, TextEncoderComponent
from specs.components.text.t5 import T5Component
from specs.components.video.diffusion import VideoDecoderComponent, VideoTransformerComponent
from specs.components.video.frames import FramesComponent
from specs.components.vision.mobilevit import MobileVitComponent
from specs.components.vision.picture import PictureComponent
from specs.components.vision.resnet import ResNetComponent
from specs.components.vision.vit import VisionTransformerComponent

__all__ = [
    "COMPONENTS",
    "MOST_LAYERS",
    "Activation",
    "Activations",
    "AppearanceComponent",
    "BertComponent",
    "BlockDecoderComponent",
    "CausalComponent",
    "ClipTextComponent",
    "Component",
    "DecoderComponent",
    "DitComponent",
    "EncodecComponent",
    "EncoderComponent",
    "EncoderInput",
    "FieldComponent",
    "FramesComponent",
    "FusionComponent",
    "Gpt2Component",
    "HifiganComponent",
    "LayerCount",
    "MobileVitComponent",
    "ModeComponent",
    "MotionComponent",
    "MultimodalFusionComponent",
    "MusicgenComponent",
    "NeoxComponent",
    "PerceiverComponent",
    "PictureComponent",
    "PointsComponent",
    "ProjectorComponent",
    "RendererComponent",
    "ResNetComponent",
    "SchedulerComponent",
    "SeriesComponent",
    "Size",
    "StructureComponent",
    "T5Component",
    "TextEncoderComponent",
    "TransformerSizes",
    "TriplaneComponent",
    "UNetComponent",
    "VaeComponent",
    "VideoDecoderComponent",
    "VideoTransformerComponent",
    "VisionTransformerComponent",
    "VitsDurationComponent",
    "VitsFlowComponent",
    "VitsTextComponent",
    "Wav2Vec2Component",
    "WhisperDecoderComponent",
    "WhisperEncoderComponent",
]

#: kind -> configuration; the one place where kinds are listed. `register_encoder` adds a user's own.
COMPONENTS: dict[str, type[Component]] = {
    "vision.vit": VisionTransformerComponent,
    "vision.clip": VisionTransformerComponent,
    "vision.siglip": VisionTransformerComponent,
    "vision.resnet": ResNetComponent,
    "vision.mobilevit": MobileVitComponent,
    "text.clip": ClipTextComponent,
    "text.siglip": ClipTextComponent,
    "text.bert": BertComponent,
    "text.decoder": DecoderComponent,
    "text.gpt2": Gpt2Component,
    "text.neox": NeoxComponent,
    "fusion.projector": ProjectorComponent,
    "fusion.late": FusionComponent,
    "fusion.sigmoid": FusionComponent,
    "fusion.gated": FusionComponent,
    "fusion.attention": FusionComponent,
    "audio.encodec": EncodecComponent,
    "audio.encodec_decoder": EncodecComponent,
    "audio.musicgen": MusicgenComponent,
    "text.t5": T5Component,
    "text.vits": VitsTextComponent,
    "audio.vits_durations": VitsDurationComponent,
    "audio.vits_flow": VitsFlowComponent,
    "audio.hifigan": HifiganComponent,
    "diffusion.vae": VaeComponent,
    "diffusion.unet": UNetComponent,
    "diffusion.dit": DitComponent,
    "diffusion.scheduler": SchedulerComponent,
    "mesh.triplane": TriplaneComponent,
    "mesh.field": FieldComponent,
    "blocks.decoder": BlockDecoderComponent,
    "blocks.structure": StructureComponent,
    "blocks.text": ModeComponent,
    "blocks.image": ModeComponent,
    "video.dit": VideoTransformerComponent,
    "video.vae": VideoDecoderComponent,
    "fusion.perceiver": PerceiverComponent,
    "avatar.appearance": AppearanceComponent,
    "avatar.motion": MotionComponent,
    "avatar.renderer": RendererComponent,
    "audio.whisper": WhisperEncoderComponent,
    "audio.wav2vec2": Wav2Vec2Component,
    "text.whisper": WhisperDecoderComponent,
    "fusion.multimodal": MultimodalFusionComponent,
    "sensor.points": PointsComponent,
    "sensor.series": SeriesComponent,
    "video.frames": FramesComponent,
}
