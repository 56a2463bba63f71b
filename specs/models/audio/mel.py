"""Mel spectrograms in standard operators: no FFT, no STFT, nothing that a compiler would have to know.

    samples --pad, Conv with windowed cosines and sines, stride hop--> re, im --> re^2 + im^2 --filters--> mel

The discrete Fourier transform of every frame is one convolution whose kernels are the transform's rows times the
window: 2 F N multiply-accumulates a frame. For speech (N = 400, 100 frames a second) that is a few percent of the
model behind it, and it runs wherever a convolution runs. The conventions are those of torchaudio, librosa and
`transformers.audio_utils`, which differ in options only; windows and filters are computed in float64.

Shape letters: B batch, L samples, N window length, F = N / 2 + 1 frequencies, M mel bands, T frames.

Not here: the logarithm, of which every model has its own (Whisper's is `compute_whisper_log`); dithering, phase.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from specs.components.audio.mel import MelScale, MelSettings, Window

Array = NDArray[np.float64]

_LINEAR_MELS, _LINEAR_HZ = 15.0, 1000.0  # Slaney's scale is linear up to here, 15 mels for 1000 Hz
_LOG_STEP = np.log(6.4) / 27.0  # ... and above it 27 mels for each factor of 6.4


class Spectrogram(nn.Module):
    """Samples [B, L] -> magnitudes to the power of `settings.power`, [B, F, T]. Without parameters."""

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, samples_BL: Tensor) -> Tensor:
        settings = self.settings
        x_B1L = samples_BL[:, None]
        if settings.center:
            half = settings.fft_length // 2
            x_B1L = functional.pad(x_B1L, (half, half), mode=settings.padding)
        kernels = torch.from_numpy(compute_fourier_kernels(settings)).to(samples_BL.dtype)
        re_BFT, im_BFT = functional.conv1d(x_B1L, kernels[:, None], stride=settings.hop_length).chunk(2, dim=1)
        power_BFT = re_BFT * re_BFT + im_BFT * im_BFT
        return power_BFT if settings.power == 2 else power_BFT.sqrt()


class MelSpectrogram(nn.Module):
    """Samples [B, L] -> mel bands [B, M, T], T = 1 + L // hop when centred. Without parameters."""

    def __init__(self, settings: MelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.spectrogram = Spectrogram(settings)

    def forward(self, samples_BL: Tensor) -> Tensor:
        power_BFT: Tensor = self.spectrogram(samples_BL)
        filters_MF = torch.from_numpy(compute_mel_filters(self.settings)).to(samples_BL.dtype)
        return filters_MF @ power_BFT


def compute_whisper_log(mel_BMT: Tensor) -> Tensor:
    """log10, at most 8 (80 dB) below each sample's largest value, then (x + 4) / 4 (Radford et al. 2022)."""
    log_BMT = mel_BMT.clamp(min=1e-10).log10()
    floor_B11 = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(log_BMT, floor_B11) + 4.0) / 4.0


def compute_fourier_kernels(settings: MelSettings) -> Array:
    """The window times cos(2 pi f n / N) for every frequency, then times -sin: [2 F, N], float64."""
    length = settings.fft_length
    window_N = np.zeros(length)
    start = (length - settings.window_size) // 2
    window_N[start : start + settings.window_size] = compute_window(settings.window, settings.window_size)
    turns_FN = (
        np.outer(np.arange(length // 2 + 1), np.arange(length)) % length
    )  # exact: the angle's whole turns are cut
    angles_FN = turns_FN * (2.0 * np.pi / length)
    return np.concatenate([np.cos(angles_FN), -np.sin(angles_FN)]) * window_N


def compute_window(window: Window, length: int) -> Array:
    """A periodic window: the last value of the symmetric one of `length` + 1 is left out."""
    angle_N = 2.0 * np.pi * np.arange(length) / length
    if window == "hann":
        return 0.5 - 0.5 * np.cos(angle_N)
    if window == "hamming":
        return 0.54 - 0.46 * np.cos(angle_N)
    if window == "povey":  # Kaldi's: a Hann window that falls less steeply
        return (0.5 - 0.5 * np.cos(angle_N)) ** 0.85
    return np.ones(length)


def compute_mel_filters(settings: MelSettings) -> Array:
    """Triangles over the frequencies, [M, F], float64: band m rises from centre m - 1 to m, and falls to m + 1."""
    low, high = convert_hertz_to_mels(np.array([settings.min_frequency, settings.top_frequency]), settings.scale)
    centres_Hz = convert_mels_to_hertz(np.linspace(low, high, settings.num_mels + 2), settings.scale)
    frequencies_Hz = np.linspace(0, settings.sample_rate // 2, settings.fft_length // 2 + 1)
    distances = centres_Hz[:, None] - frequencies_Hz
    widths = np.diff(centres_Hz)[:, None]
    filters_MF = np.maximum(0.0, np.minimum(-distances[:-2] / widths[:-1], distances[2:] / widths[1:]))
    if settings.norm == "slaney":  # triangles of equal area
        filters_MF *= (2.0 / (centres_Hz[2:] - centres_Hz[:-2]))[:, None]
    return np.ascontiguousarray(filters_MF)


def convert_hertz_to_mels(hertz: Array, scale: MelScale) -> Array:
    """HTK's 2595 log10(1 + f / 700), or Slaney's: linear to 1000 Hz, logarithmic above."""
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    linear = hertz * (_LINEAR_MELS / _LINEAR_HZ)
    return np.where(
        hertz < _LINEAR_HZ, linear, _LINEAR_MELS + np.log(np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ) / _LOG_STEP
    )


def convert_mels_to_hertz(mels: Array, scale: MelScale) -> Array:
    """The inverse of `convert_hertz_to_mels`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    linear = mels * (_LINEAR_HZ / _LINEAR_MELS)
    return np.where(mels < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_MELS)))
