"""Sound to token features: Whisper's encoder, wav2vec 2.0's, mel spectrograms, a stack of convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import Wav2Vec2Component, WhisperEncoderComponent
from specs.components.audio.mel import MelSettings
from specs.composing.making import fill_seeded, make_config
from specs.models.audio import wav2vec2, whisper
from specs.models.audio.mel import MelSpectrogram


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """A mel spectrogram's sizes, and the width of what is made of it."""

    sample_rate: int = 16000
    n_mels: int = 80
    hidden_size: int = 768


@final
class WhisperFeatures(nn.Module):
    """Log-mel spectrograms [B, bands, frames] -> states [B, frames / 2, C]; see `encode_samples` for raw sound."""

    def __init__(self, config: WhisperEncoderComponent, *, seed: int) -> None:
        super().__init__()
        self.encoder = whisper.WhisperEncoder(config)
        fill_seeded(self, seed)

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
        fill_seeded(self, seed)

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
        fill_seeded(self, seed)

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
        config = make_config(
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
        return MelSpectrogram(make_config(MelSettings, {**given, **options}))

    @staticmethod
    def wav2vec(sample_rate: int = 16000, *, hidden_size: int = 768, seed: int = 0, **options: Any) -> Wav2VecFeatures:
        """wav2vec 2.0's encoder (Baevski et al. 2020), of its base model's sizes."""
        defaults = {"num_layers": 12, "num_heads": 12, "vocab_size": 32}
        given = {"kind": "audio.wav2vec2", "sample_rate": sample_rate, "hidden_size": hidden_size}
        return Wav2VecFeatures(make_config(Wav2Vec2Component, {**given, **defaults, **options}), seed=seed)
