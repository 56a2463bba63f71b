"""Made-up sounds for golden and calibration data: voices more than noise, since that is what models hear."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_HARMONICS = 12


def make_sound(shape: tuple[int, ...], random: np.random.Generator, *, sample_rate: int) -> NDArray[Any]:
    """Samples [B, L] within [-1, 1]: a gliding pitch with overtones, in syllables, over a little noise."""
    batch, length = shape
    seconds = np.arange(length) / sample_rate
    pitch_B1 = random.uniform(90, 250, (batch, 1))
    glide_B1, rate_B1, start_B1 = random.uniform((-20, 2, 0), (20, 5, 1), (batch, 3)).T[:, :, None]
    phase_BL = 2 * np.pi * (pitch_B1 * seconds + glide_B1 * seconds**2 / 2)
    loud_BH = random.random((batch, _HARMONICS)) / np.arange(1, _HARMONICS + 1)
    voice_BL = sum(loud_BH[:, h, None] * np.sin((h + 1) * phase_BL) for h in range(_HARMONICS))
    syllables_BL = np.clip(np.sin(2 * np.pi * (rate_B1 * seconds + start_B1)) + 0.3, 0, 1)
    sound: NDArray[Any] = 0.3 * voice_BL * syllables_BL + 0.003 * random.standard_normal(shape)
    return sound.clip(-1, 1)
