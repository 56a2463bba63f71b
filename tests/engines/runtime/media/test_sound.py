"""Sounds from files: every format that is read, every way a file can be broken, and the resampler's numbers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from engines.runtime.media.sound import load_sound, read_wav, resample
from specs.errors import InputError
from tests.checkpoints.speech import write_wav

RATE = 16000


def make_tone(count: int, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)


@pytest.mark.parametrize(
    ("kind", "bits", "error"), [(1, 8, 8e-3), (1, 16, 4e-5), (1, 24, 2e-7), (1, 32, 1e-9), (3, 32, 3e-8), (3, 64, 0.0)]
)
def test_every_kind_of_samples(kind: int, bits: int, error: float, tmp_path: Path) -> None:
    tone = np.stack([make_tone(401), -make_tone(401) / 2])
    found, rate = read_wav(write_wav(tmp_path / "a.wav", tone, 44100, kind=kind, bits=bits))
    assert rate == 44100 and found.shape == (2, 401)
    np.testing.assert_allclose(found, tone, atol=error)
    assert np.abs(found - tone).max() >= error / 100


def test_extensible_format_and_an_unknown_length(tmp_path: Path) -> None:
    """Format 0xFFFE says its own inside; a stream that was not closed says the largest length."""
    path = write_wav(tmp_path / "a.wav", make_tone(100), RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ")
    layout = data[at + 8 : at + 24]
    layout[:2] = struct.pack("<H", 0xFFFE)
    extra = struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14)
    data[at : at + 24] = b"fmt " + struct.pack("<I", 40) + layout + extra
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    np.testing.assert_allclose(read_wav(path)[0][0], make_tone(100), atol=4e-5)


def test_channels_are_mixed_and_the_rate_is_changed(tmp_path: Path) -> None:
    tone = make_tone(4410, 44100)
    path = write_wav(tmp_path / "a.wav", np.stack([tone, tone * 0]), 44100, kind=3, bits=64)
    found = load_sound(path, sample_rate=RATE)
    assert found.dtype == np.float32 and found.shape == (1600,)
    np.testing.assert_allclose(found[300:1300], make_tone(1600)[300:1300] / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target"), [(44100, 16000), (48000, 16000), (8000, 16000), (11025, 16000), (16000, 44100)]
)
def test_resampling_keeps_what_both_rates_hold(source: int, target: int) -> None:
    """-120 dB below 0.8 of the lower half rate, where transition begins; -60 dB at 0.9; what lies beyond is gone."""
    lower = min(source, target) / 2
    for share, decibels in ((0.05, -120), (0.5, -120), (0.8, -120), (0.9, -60)):
        found = resample(make_tone(source // 2, source, share * lower), source, target)
        wanted = make_tone(len(found), target, share * lower)
        middle = slice(len(found) // 4, 3 * len(found) // 4)
        error = np.sqrt(np.mean((found - wanted)[middle] ** 2)) / np.sqrt(np.mean(wanted[middle] ** 2))
        assert 20 * np.log10(error) < decibels, (share, 20 * np.log10(error))
    if source > target:
        left = resample(make_tone(source // 2, source, 1.05 * lower), source, target)
        assert np.abs(left[len(left) // 4 : 3 * len(left) // 4]).max() < 1e-5


def test_resampling_agrees_with_scipy_and_keeps_time() -> None:
    """A band-limited noise; scipy's own filter differs a little, and not by a shift of one sample (which is -20 dB)."""
    noise = np.random.default_rng(0).standard_normal(9600)
    low = scipy.signal.firwin(401, 0.25)
    smooth = np.convolve(noise, low, mode="same")
    found, wanted = resample(smooth, 48000, 16000), scipy.signal.resample_poly(smooth, 1, 3)
    assert len(found) == len(wanted)
    error = np.sqrt(np.mean((found - wanted)[200:-200] ** 2) / np.mean(wanted[200:-200] ** 2))
    assert error < 5e-3
    assert len(resample(noise[:7], 44100, 16000)) == 3 and len(resample(noise[:1], 8000, 16000)) == 2


def cut(data: bytes) -> bytes:
    return data[:-10]


BROKEN = {
    "empty": (lambda _: b"", "this file is no .wav"),
    "flac": (lambda _: b"fLaC" + bytes(40), "this file is no .wav"),
    "truncated": (cut, "the file is truncated"),
    "cut in its format": (lambda data: data[:12] + b"fmt " + struct.pack("<I", 16) + b"12", "the file is truncated"),
    "nothing but its name": (lambda data: data[:12], "the file holds no sound"),
    "no data": (lambda data: data[: data.index(b"data")], "the file holds no sound"),
    "data first": (lambda data: data[:12] + data[data.index(b"data") :], "the sound comes before its format"),
    "A-law": (lambda data: data.replace(b"\x01\x00\x01\x00", b"\x06\x00\x01\x00", 1), "this kind of .wav is not read"),
    "no channels": (lambda data: data.replace(b"\x01\x00\x01\x00", b"\x01\x00\x00\x00", 1), "makes no sense"),
    "one sample a second": (
        lambda data: data.replace(struct.pack("<I", RATE), struct.pack("<I", 1), 1),
        "the file's format makes no sense",
    ),
    "no samples": (
        lambda data: data[: data.index(b"data")] + b"data" + struct.pack("<I", 0),
        "there is no sound in it",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    spoil, words = BROKEN[name]
    path = write_wav(tmp_path / "a.wav", make_tone(100), RATE)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_sound(path, sample_rate=RATE)
    assert words in str(caught.value).splitlines()[0]
    assert str(path) in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the sound cannot be read"):
        load_sound(tmp_path / "none.wav", sample_rate=RATE)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(10, np.int16), "these samples are no sound"),
        (np.zeros((1, 2, 3)), "these samples are no sound"),
        (np.array([0.0, np.nan]), "the sound holds NaN or infinity"),
        (np.zeros(0), "there is no sound in it"),
    ],
)
def test_samples_that_are_no_sound(samples: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_sound(samples, sample_rate=RATE)


def test_samples_are_taken_at_their_rate() -> None:
    assert load_sound(make_tone(100), sample_rate=RATE).shape == (100,)
    assert load_sound(make_tone(100)[None], sample_rate=RATE, source_rate=8000).shape == (200,)
