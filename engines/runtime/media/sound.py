"""A .wav file -> samples as the models take them: mono, float32 in about [-1, 1], at their own rate.

    RIFF chunks -> integers or floats -> mean of the channels -> windowed-sinc resampling

numpy only. Read are PCM of 8, 16, 24 and 32 bits and floats of 32 and 64; not compressed formats (ADPCM, A-law, MP3).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.runtime.media.files import read_bytes
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_LOUDEST = 1e9  # of samples in about [-1, 1]; integers that were not divided are below it
_RATES = range(1000, 768_001)  # samples a second
#: The filter of `resample`: its half width in periods of the lower rate, its window, and where it is at -6 dB. Measured
#: on sines, as shares of the lower half rate: the error is -128 dB up to 0.8 and -73 dB at 0.9, and what lies beyond
#: 1.02 is left with -122 dB.
_ZERO_CROSSINGS = 64
_KAISER_BETA = 12.0
_ROLLOFF = 0.95
_BLOCK = 1 << 22  # elements of an intermediate array


def load_sound(sound: str | Path | Array, *, sample_rate: int, source_rate: int | None = None) -> Array:
    """Mono samples, float32 [samples], at `sample_rate` a second.

    Args:
        sound: a .wav file; or samples in [-1, 1], float [samples] or [channels, samples].
        source_rate: of samples that are handed over; `sample_rate` when absent. A file says its own.

    Raises:
        InputError: no such file, no sound in it, a format that is not read, or samples that are not finite.
    """
    if isinstance(sound, (str, Path)):
        samples, source_rate = read_wav(sound)
        where = str(sound)
    else:
        samples, where = np.atleast_2d(np.asarray(sound)), "the samples"
        if samples.ndim != 2 or samples.dtype.kind != "f":
            raise InputError(
                "these samples are no sound",
                got=f"{samples.dtype} {list(samples.shape)}",
                allowed="floats in [-1, 1], [samples] or [channels, samples]",
                fix="divide integers by their full scale",
            )
    if samples.size == 0:
        raise InputError(
            "there is no sound in it",
            where=where,
            got="0 samples",
            fix="record it again, or check what wrote the file",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        mono = samples.astype(np.float64).mean(axis=0)
    if not (np.abs(mono) <= _LOUDEST).all():  # NaN is not, either
        raise InputError(
            "the sound holds NaN or infinity" if not np.isfinite(mono).all() else "the sound is far too loud to be one",
            where=where,
            got=f"up to {np.abs(samples).max():.3g}",
            allowed="about -1 to 1",
            fix="write it again",
        )
    return resample(mono, source_rate or sample_rate, sample_rate).astype(np.float32)


def load_chunk(sound: str | Path | Array, *, sample_rate: int, num_samples: int) -> Array:
    """What `load_sound` gives, with silence behind it: float32 [num_samples], all that a model hears at once.

    Raises:
        InputError: as `load_sound`, or the sound is longer.
    """
    samples = load_sound(sound, sample_rate=sample_rate)
    if len(samples) > num_samples:
        raise InputError(
            "the sound is longer than the model hears at once",
            where=str(sound) if isinstance(sound, (str, Path)) else None,
            got=f"{len(samples) / sample_rate:.1f} s",
            allowed=f"{num_samples / sample_rate:.1f} s",
            fix="cut it",
        )
    return np.pad(samples, (0, num_samples - len(samples)))


def read_wav(path: str | Path) -> tuple[Array, int]:
    """Samples [channels, samples], float64 in [-1, 1], and how many there are a second."""
    data = read_bytes(path, what="sound")
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise _word_refusal(path, "this file is no .wav", got=_describe_start(data))
    layout: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt ":
            layout = _read_layout(path, body)
        elif name == b"data":
            if layout is None:
                raise _word_refusal(path, "the sound comes before its format", got="a 'data' chunk before 'fmt '")
            if len(body) < size and size < 0xFFFFFFFF:  # a stream that never learned its length says the largest
                raise _word_refusal(path, "the file is truncated", got=f"{len(body)} of {size} bytes of sound")
            kind, channels, rate, bits = layout
            return _decode(body, kind, channels, bits), rate
        at += 8 + size + size % 2
    raise _word_refusal(path, "the file holds no sound", got="no 'data' chunk")


def resample(samples: Array, source_rate: int, target_rate: int) -> Array:
    """`samples` [N] at another rate: [ceil(N * target / source)], float64.

    Each output sample is the band-limited signal at its own time: a sum of the samples around it under a sinc with a
    Kaiser window, cut below half of the lower rate (Smith, Digital Audio Resampling, 2002). Silence lies beyond both
    ends.
    """
    if source_rate == target_rate:
        return np.asarray(samples, np.float64)
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    cutoff = _ROLLOFF * min(1.0, up / down)  # of half the source's rate
    reach = math.ceil(_ZERO_CROSSINGS / cutoff)
    count = -(-len(samples) * up // down)
    padded = np.pad(np.asarray(samples, np.float64), (reach, reach + down))
    offsets = np.arange(-reach, reach + 1)
    out = np.empty(count)
    step = max(1, _BLOCK // len(offsets))
    for phase in range(min(up, count)):  # outputs phase, phase + up, ... lie at the same place between two samples
        whole, part = divmod(phase * down, up)
        weights = _weigh(offsets - part / up, cutoff)
        total = len(range(phase, count, up))
        for start in range(0, total, step):
            index = np.arange(start, min(total, start + step))
            windows = (whole + index * down)[:, None] + np.arange(len(offsets))
            out[phase + index * up] = padded[windows] @ weights
    return out


def _weigh(distance: Array, cutoff: float) -> Array:
    """The filter's value so many source samples away; 0 beyond _ZERO_CROSSINGS of it."""
    share = np.clip(distance * cutoff / _ZERO_CROSSINGS, -1, 1)
    window = np.i0(_KAISER_BETA * np.sqrt(1 - share**2)) / np.i0(_KAISER_BETA)
    weights: Array = cutoff * np.sinc(distance * cutoff) * window * (np.abs(share) < 1)
    weights /= weights.sum()
    return weights


def _read_layout(path: str | Path, body: bytes) -> tuple[int, int, int, int]:
    """Format, channels, rate and bits of the `fmt ` chunk."""
    if len(body) < 16:
        raise _word_refusal(path, "the file is truncated", got=f"{len(body)} of 16 bytes of its format")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if kind == _EXTENSIBLE and len(body) >= 26:
        kind = struct.unpack_from("<H", body, 24)[0]  # the format's own number begins its identifier
    if (kind, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise _word_refusal(path, "this kind of .wav is not read", got=f"format {kind}, {bits} bits")
    if not channels or rate not in _RATES:
        raise _word_refusal(
            path, "the file's format makes no sense", got=f"{channels} channels, {rate} samples a second"
        )
    return kind, channels, rate, bits


def _decode(body: bytes, kind: int, channels: int, bits: int) -> Array:
    """[channels, samples]; a last frame that is not complete is dropped."""
    width = bits // 8
    body = body[: len(body) // (width * channels) * width * channels]
    if kind == _FLOAT:
        values = np.frombuffer(body, f"<f{width}").astype(np.float64)
    elif bits == 8:  # the only unsigned one
        values = (np.frombuffer(body, np.uint8).astype(np.float64) - 128) / 128
    elif bits == 24:
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0] / 2.0**31
    else:
        values = np.frombuffer(body, f"<i{width}") / 2.0 ** (bits - 1)
    samples: Array = values.reshape(-1, channels).T
    return samples


def _describe_start(data: bytes) -> str:
    names = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\xff\xfb": "MP3", b"RF64": "RF64", b"FORM": "AIFF"}
    kind = next((kind for start, kind in names.items() if data.startswith(start)), None)
    return f"a {kind} file" if kind else f"{len(data)} bytes that begin {data[:8]!r}"


def _word_refusal(path: str | Path, problem: str, *, got: str) -> InputError:
    return InputError(
        problem,
        where=str(path),
        got=got,
        allowed="a .wav of PCM (8, 16, 24, 32 bits) or floats (32, 64 bits)",
        fix="convert it: ffmpeg -i FILE -ar 16000 -ac 1 sound.wav",
    )
