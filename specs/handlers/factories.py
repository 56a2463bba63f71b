"""[torch] Encoders, fusions and dynamics as torch modules with seeded weights, for those who compose in Python.

    Vision.clip / siglip / vit, VisionTransformer(VisionConfig), PatchEmbedding       pixels -> token features
    Audio.whisper / mel_spectrogram / wav2vec, AudioConvStack(AudioConfig)            sound -> token features
    Fusion.cross_attention / gated / perceiver / concat                               features -> features
    INLDynamics                                                                       hidden state -> hidden state

The modules are those of `specs.models`, which a spec's components name too: `vision.clip`, `audio.whisper`,
`fusion.perceiver` and so on. An option that a component has is a keyword here; an unknown one is a SpecError.

For inference: the custom ops have no gradients of their own; inside `specs.ops.plain_torch()` torch's operators have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, final

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components import VisionTransformerComponent, Wav2Vec2Component, WhisperEncoderComponent
from specs.components.audio.mel import MelSettings
from specs.components.fusion.resampling import CrossAttentionComponent, PerceiverComponent
from specs.errors import SpecError, name_nearest
from specs.models.audio import wav2vec2, whisper
from specs.models.audio.mel import MelSpectrogram
from specs.models.fusion import resampling
from specs.models.text.dynamics import INLDynamics
from specs.models.vision import vit
from specs.parameters.fill import fill_parameters
from specs.schema import WeightsSpec

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

Config = TypeVar("Config", bound=BaseModel)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a ViT-B/16 unless said otherwise; sizes in pixels."""

    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_layers: int = 12
    num_channels: int = 3


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """A mel spectrogram's sizes, and the width of what is made of it."""

    sample_rate: int = 16000
    n_mels: int = 80
    hidden_size: int = 768


@final
class PatchEmbedding(nn.Module):
    """Pixels [B, channels, height, width] -> patches [B, N, C]: one convolution of patch size and stride."""

    def __init__(self, config: VisionConfig, *, seed: int = 0) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)
        _fill(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        patches_BNC: Tensor = self.projection(images).flatten(2).transpose(1, 2)
        return patches_BNC


class VisionTransformer(nn.Module):
    """Pixels [B, channels, height, width] in [0, 1] -> features of the patches [B, N, C], without the class token."""

    def __init__(self, config: VisionConfig | VisionTransformerComponent, *, seed: int = 0) -> None:
        super().__init__()
        if isinstance(config, VisionConfig):
            config = _make_vision(
                "vision.vit",
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.hidden_size,
                num_heads=config.num_attention_heads,
                num_layers=config.num_layers,
                num_channels=config.num_channels,
            )
        self.tower = vit.VisionTransformer(config)
        _fill(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        features_BNC = self.tower.forward_features(images, keep_class_token=False)
        return self.tower.normalise_tokens(features_BNC)


@final
class Vision:
    """Image encoders of ViT-B's sizes; each option of the component of the same name is a keyword."""

    @staticmethod
    def clip(image_size: int = 224, patch_size: int = 16, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """CLIP's (Radford et al. 2021)."""
        return VisionTransformer(_make_vision("vision.clip", image_size, patch_size, **options), seed=seed)

    @staticmethod
    def siglip(image_size: int = 384, patch_size: int = 14, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """SigLIP's (Zhai et al. 2023); pixels beyond the last whole patch are not seen (384 = 27 * 14 + 6)."""
        options = {"ignore_remainder": True, **options}
        return VisionTransformer(_make_vision("vision.siglip", image_size, patch_size, **options), seed=seed)

    @staticmethod
    def vit(image_size: int = 224, patch_size: int = 16, *, seed: int = 0, **options: Any) -> VisionTransformer:
        """ViT's (Dosovitskiy et al. 2020)."""
        return VisionTransformer(_make_vision("vision.vit", image_size, patch_size, **options), seed=seed)


@final
class WhisperFeatures(nn.Module):
    """Log-mel spectrograms [B, bands, frames] -> states [B, frames / 2, C]; see `encode_samples` for raw sound."""

    def __init__(self, config: WhisperEncoderComponent, *, seed: int) -> None:
        super().__init__()
        self.encoder = whisper.WhisperEncoder(config)
        _fill(self, seed)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.encoder.read_mel(log_mel)

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Samples [B, L] in [-1, 1] of one chunk -> states."""
        return self.encoder(samples)  # type: ignore[no-any-return]


@final
class Wav2VecFeatures(nn.Module):
    """Samples [B, L] -> states [B, about L / 320, C]; rows are whole unless `lengths` [B] says less."""

    def __init__(self, config: Wav2Vec2Component, *, seed: int) -> None:
        super().__init__()
        self.encoder = wav2vec2.Wav2Vec2(config)
        _fill(self, seed)

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            lengths = torch.full((samples.shape[0],), samples.shape[1], device=samples.device)
        return self.encoder.encode(samples, lengths)


@final
class AudioConvStack(nn.Module):
    """Log-mel spectrograms [B, bands, frames] -> features [B, frames / 2, C]: the two convolutions of Whisper."""

    def __init__(self, config: AudioConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.hidden_size, 3, padding=1)
        self.conv2 = nn.Conv1d(config.hidden_size, config.hidden_size, 3, stride=2, padding=1)
        _fill(self, seed)

    def forward(self, mel_spectrogram: Tensor) -> Tensor:
        x_BCT = functional.gelu(self.conv2(functional.gelu(self.conv1(mel_spectrogram))))
        return x_BCT.transpose(1, 2)


@final
class Audio:
    """Sound encoders; each option of the component of the same name is a keyword."""

    @staticmethod
    def whisper(
        sample_rate: int = 16000, n_mels: int = 80, *, hidden_size: int = 768, seed: int = 0, **options: Any
    ) -> WhisperFeatures:
        """Whisper's encoder (Radford et al. 2022), of Whisper small's sizes."""
        defaults = {"num_layers": 12, "num_heads": 12}
        config = _make(
            WhisperEncoderComponent,
            {
                "kind": "audio.whisper",
                "sample_rate": sample_rate,
                "num_mels": n_mels,
                "hidden_size": hidden_size,
                **defaults,
                **options,
            },
        )
        return WhisperFeatures(config, seed=seed)

    @staticmethod
    def mel_spectrogram(
        sample_rate: int = 16000, n_mels: int = 80, *, n_fft: int = 400, hop_length: int = 160, **options: Any
    ) -> MelSpectrogram:
        """Samples [B, L] -> mel bands [B, n_mels, 1 + L // hop_length]; it has no weights."""
        given = {"sample_rate": sample_rate, "num_mels": n_mels, "fft_length": n_fft, "hop_length": hop_length}
        return MelSpectrogram(_make(MelSettings, {**given, **options}))

    @staticmethod
    def wav2vec(sample_rate: int = 16000, *, hidden_size: int = 768, seed: int = 0, **options: Any) -> Wav2VecFeatures:
        """wav2vec 2.0's encoder (Baevski et al. 2020), of its base model's sizes."""
        defaults = {"num_layers": 12, "num_heads": 12, "vocab_size": 32}
        given = {"kind": "audio.wav2vec2", "sample_rate": sample_rate, "hidden_size": hidden_size}
        return Wav2VecFeatures(_make(Wav2Vec2Component, {**given, **defaults, **options}), seed=seed)


@final
class GatedFusion(nn.Module):
    """Per channel, a learned share of each of two features of one shape [..., C] (Arevalo et al. 2017)."""

    def __init__(self, hidden_size: int, *, seed: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * hidden_size, hidden_size)
        _fill(self, seed)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return ops.gated_fusion(first, second, self.gate.weight, self.gate.bias)


@final
class ConcatFusion(nn.Module):
    """Features of one shape [..., C], side by side and through one Linear: [..., C]."""

    def __init__(self, hidden_size: int, *, num_inputs: int, seed: int) -> None:
        super().__init__()
        self.projection = nn.Linear(num_inputs * hidden_size, hidden_size)
        _fill(self, seed)

    def forward(self, *features: Tensor) -> Tensor:
        fused: Tensor = self.projection(torch.cat(features, dim=-1))
        return fused


@final
class Fusion:
    """What joins features; each option of the component of the same name is a keyword."""

    @staticmethod
    def cross_attention(
        hidden_size: int, num_heads: int = 8, *, seed: int = 0, **options: Any
    ) -> resampling.CrossAttention:
        """`fusion(query=..., key_value=...)`; `compute_weights` shows what was looked at."""
        given = {"kind": "fusion.cross_attention", "hidden_size": hidden_size, "num_heads": num_heads}
        return _fill(resampling.CrossAttention(_make(CrossAttentionComponent, {**given, **options})), seed)

    @staticmethod
    def gated(hidden_size: int, *, seed: int = 0) -> GatedFusion:
        """Two features of one shape."""
        return GatedFusion(hidden_size, seed=seed)

    @staticmethod
    def perceiver(hidden_size: int, num_latents: int = 64, *, seed: int = 0, **options: Any) -> resampling.Perceiver:
        """[B, any length, C] -> [B, num_latents, C]."""
        given = {"kind": "fusion.perceiver", "hidden_size": hidden_size, "num_latents": num_latents}
        return _fill(resampling.Perceiver(_make(PerceiverComponent, {**given, **options})), seed)

    @staticmethod
    def concat(hidden_size: int, *, num_inputs: int = 2, seed: int = 0) -> ConcatFusion:
        """Several features of one shape."""
        return ConcatFusion(hidden_size, num_inputs=num_inputs, seed=seed)


def _make_vision(
    kind: Literal["vision.clip", "vision.siglip", "vision.vit"], image_size: int, patch_size: int, **options: Any
) -> VisionTransformerComponent:
    sizes = {"hidden_size": 768, "num_layers": 12, "num_heads": 12}
    given = {"kind": kind, "image_size": image_size, "patch_size": patch_size}
    return _make(VisionTransformerComponent, {**given, **sizes, **options})


def _make(kind: type[Config], values: dict[str, Any]) -> Config:
    """A component's configuration, with an error as a spec's would be.

    Raises:
        SpecError: an unknown keyword, or sizes that contradict each other.
    """
    for key in values:
        if key not in kind.model_fields:
            raise SpecError(
                f"unknown option '{key}'", allowed=name_nearest(key, kind.model_fields), fix="use one of these"
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or None
        raise SpecError(first["msg"].removeprefix("Value error, "), where=where, fix="change the value") from None


def _fill(module: Module, seed: int) -> Module:
    """Seeded weights, as a spec's `weights: {source: random}` gives them."""
    fill_parameters({"module": module}, WeightsSpec(seed=seed))
    return module
