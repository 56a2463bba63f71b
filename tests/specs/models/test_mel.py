"""Mel spectrograms against transformers' and torch's own, at every option; and a picture's worth of sense."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from specs.components.audio.mel import MelSettings
from specs.models.audio.mel import (
    MelSpectrogram,
    Spectrogram,
    compute_mel_filters,
    compute_whisper_log,
    compute_window,
    convert_hertz_to_mels,
    convert_mels_to_hertz,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import audio_utils

OPTIONS: dict[str, dict[str, Any]] = {
    "Whisper": {"max_frequency": 8000.0},
    "Whisper large-v3": {"num_mels": 128},
    "torchaudio": {"scale": "htk", "norm": "none", "num_mels": 40, "fft_length": 512, "hop_length": 256},
    "librosa": {"sample_rate": 22050, "fft_length": 2048, "hop_length": 512, "num_mels": 128, "padding": "constant"},
    "band": {"scale": "htk", "min_frequency": 20.0, "max_frequency": 7600.0, "num_mels": 23, "fft_length": 512},
    "short window": {"fft_length": 512, "window_length": 321, "window": "hamming"},
    "magnitudes, not centred": {"power": 1, "center": False, "window": "povey", "fft_length": 256, "num_mels": 30},
    "odd length": {"fft_length": 401, "hop_length": 7, "window": "boxcar", "num_mels": 64},
}


def make_samples() -> torch.Tensor:
    return torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_filters_equal_transformers(name: str) -> None:
    settings = MelSettings(**OPTIONS[name])
    theirs = audio_utils.mel_filter_bank(
        settings.num_frequencies,
        settings.num_mels,
        settings.min_frequency,
        settings.top_frequency,
        settings.sample_rate,
        norm=None if settings.norm == "none" else settings.norm,
        mel_scale=settings.scale,
    )
    np.testing.assert_allclose(compute_mel_filters(settings), theirs.T, atol=1e-14)


@pytest.mark.parametrize("name", OPTIONS)
def test_spectrogram_equals_torch_stft(name: str) -> None:
    """In float64 to the last digits; in float32 to its noise."""
    settings = MelSettings(**OPTIONS[name])
    samples, window = make_samples(), torch.from_numpy(compute_window(settings.window, settings.window_size))
    wanted = (
        torch.stft(
            samples,
            settings.fft_length,
            settings.hop_length,
            settings.window_size,
            window,
            center=settings.center,
            pad_mode=settings.padding,
            return_complex=True,
        ).abs()
        ** settings.power
    )
    found = Spectrogram(settings)(samples)
    assert found.shape == wanted.shape
    scale = wanted.max()
    torch.testing.assert_close(found / scale, wanted / scale, atol=1e-13, rtol=0)
    mel = torch.from_numpy(compute_mel_filters(settings)) @ wanted
    narrow = MelSpectrogram(settings)(samples.float())
    torch.testing.assert_close(narrow.double() / mel.max(), mel / mel.max(), atol=2e-6, rtol=0)


def test_windows_equal_torch() -> None:
    torch.testing.assert_close(torch.from_numpy(compute_window("hann", 25)), torch.hann_window(25, dtype=torch.float64))
    hamming = torch.hamming_window(24, dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(compute_window("hamming", 24)), hamming)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_scales_are_inverse_and_equal_transformers(scale: Any) -> None:
    hertz = np.array([0.0, 1.0, 440.0, 999.9, 1000.0, 1000.1, 8000.0])
    mels = convert_hertz_to_mels(hertz, scale)
    np.testing.assert_allclose(mels, audio_utils.hertz_to_mel(hertz, mel_scale=scale), rtol=1e-13)
    np.testing.assert_allclose(convert_mels_to_hertz(mels, scale), hertz, atol=1e-9)


def test_a_tone_lights_up_its_band() -> None:
    """440 Hz under Slaney's scale is mel 6.6: of 80 bands up to 8000 Hz (45.2 mels) the one around it."""
    settings = MelSettings()
    seconds = torch.arange(16000, dtype=torch.float64) / 16000
    mel = MelSpectrogram(settings)(torch.sin(2 * torch.pi * 440 * seconds)[None])[0]
    band = int(mel.mean(1).argmax())
    centres = convert_mels_to_hertz(np.linspace(0, convert_hertz_to_mels(np.array(8000.0), "slaney"), 82), "slaney")
    assert abs(centres[band + 1] - 440) < 40
    assert mel.shape == (80, 101)


def test_whisper_log_ends_80_db_below_the_loudest() -> None:
    mel = torch.tensor([[[1e4, 1e-12, 1.0]], [[0.0, 0.0, 0.0]]], dtype=torch.float64)
    found = compute_whisper_log(mel)
    torch.testing.assert_close(found[0, 0], torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found[1, 0], torch.full((3,), -1.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_length": 401}, "window_length 401 is longer than fft_length 400"),
        ({"max_frequency": 8001.0}, "needs min_frequency < max_frequency <= sample_rate / 2"),
        ({"min_frequency": 8000.0}, "needs min_frequency < max_frequency <= sample_rate / 2"),
        ({"window": "kaiser"}, "Input should be 'hann'"),
    ],
)
def test_settings_that_contradict_themselves(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MelSettings(**options)
