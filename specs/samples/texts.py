"""Made-up texts for golden and calibration data: ids, and how long a text is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def make_text(shape: tuple[int, ...], vocab_size: int, random: np.random.Generator) -> NDArray[Any]:
    """Texts of different lengths: ids, the end-of-text token (the largest id), and zeros. The first one is full."""
    batch, context = shape
    ids = random.integers(0, max(1, vocab_size - 1), shape)
    end = random.integers(context // 2, context, batch)
    end[0] = context - 1
    position = np.arange(context)
    ids[position == end[:, None]] = vocab_size - 1
    ids[position > end[:, None]] = 0
    return ids


def draw_length(most: int, *, seed: int) -> int:
    """1 to `most`: how long the text of a random calibration sample is.

    A range must have seen short texts too: over few tokens attention's mean is louder than over many.
    """
    return 1 + int(np.random.default_rng(seed).integers(most))
