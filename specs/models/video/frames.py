"""A film as tokens: sampled frames through one vision transformer, a token a temporal window.

Shape letters: B batch, N frames, F sampled frames, W windows, H and W the raw size, C channels, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import FramesComponent
from specs.models.vision.raw_pixels import FrameSampler, RawPixels, find_compute_dtype
from specs.models.vision.vit import VisionTransformer


class RawFrames(nn.Module):
    """frames [B, N, H, W, C] uint8 -> pictures [B * F, C, h, w] in [0, 1]."""

    def __init__(self, config: FramesComponent) -> None:
        super().__init__()
        self.sampler, self.pixels = FrameSampler(config.num_frames), RawPixels(config)

    def forward(self, frames_BNHWC: Tensor, dtype: torch.dtype) -> Tensor:
        image_BCHW: Tensor = self.pixels(
            self.sampler(frames_BNHWC.to(dtype)).flatten(0, 1), dtype
        )  # bytes go into a Cast first
        return image_BCHW


class FramesEncoder(nn.Module):
    """frames [B, N, H, W, C] uint8 -> tokens [B, windows, D]; see `FramesComponent`."""

    def __init__(self, config: FramesComponent) -> None:
        super().__init__()
        self.config = config
        self.raw = RawFrames(config)
        self.tower = VisionTransformer(config)
        self.position_embedding = nn.Parameter(torch.empty(config.num_windows, config.feature_size))

    def forward(self, frames_BNHWC: Tensor) -> Tensor:
        image_BCHW = self.raw(frames_BNHWC, find_compute_dtype(self.tower))
        embedding_BFD = self.tower(image_BCHW).reshape(-1, self.config.num_frames, self.config.feature_size)
        windows_BWD = embedding_BFD
        if self.config.window_size > 1 or self.config.stride > 1:
            windows_BWD = torch.stack([self._average(embedding_BFD, w) for w in range(self.config.num_windows)], dim=1)
        tokens_BWD: Tensor = windows_BWD + self.position_embedding
        return tokens_BWD

    def _average(self, embedding_BFD: Tensor, window: int) -> Tensor:
        start = window * self.config.stride
        return embedding_BFD[:, start : start + self.config.window_size].mean(dim=1)
