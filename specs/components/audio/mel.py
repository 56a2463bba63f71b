"""How a mel spectrogram is made: the options by which torchaudio, librosa and transformers differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from specs.components.base import Size

MelScale = Literal["htk", "slaney"]
Window = Literal["hann", "hamming", "povey", "boxcar"]


class MelSettings(BaseModel):
    """Sizes in samples, frequencies in hertz. The defaults are Whisper's: 25 ms windows every 10 ms, 80 bands.

    torchaudio's defaults are scale htk without norm; librosa's scale slaney with norm slaney.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate: Size = 16000
    fft_length: Annotated[int, Field(ge=2, le=1 << 16)] = 400
    window_length: Annotated[int, Field(ge=1, le=1 << 16)] | None = Field(
        default=None, description="fft_length when absent; a shorter window lies in the middle"
    )
    hop_length: Size = 160
    num_mels: Size = 80
    min_frequency: Annotated[float, Field(ge=0)] = 0.0
    max_frequency: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="half the sample rate when absent"
    )
    scale: MelScale = "slaney"
    norm: Literal["none", "slaney"] = Field(default="slaney", description="slaney: triangles of equal area")
    window: Window = "hann"
    power: Literal[1, 2] = 2
    center: bool = Field(default=True, description="frame t is centred at sample t * hop_length")
    padding: Literal["reflect", "constant"] = Field(default="reflect", description="at both ends, when centred")

    @model_validator(mode="after")
    def _check_sizes(self) -> MelSettings:
        if self.window_size > self.fft_length:
            raise ValueError(f"window_length {self.window_size} is longer than fft_length {self.fft_length}")
        if not self.min_frequency < self.top_frequency <= self.sample_rate / 2:
            raise ValueError(
                f"needs min_frequency < max_frequency <= sample_rate / 2, got {self.min_frequency},"
                f" {self.top_frequency}, {self.sample_rate / 2}"
            )
        return self

    @property
    def window_size(self) -> int:
        return self.window_length or self.fft_length

    @property
    def top_frequency(self) -> float:
        return self.max_frequency or self.sample_rate / 2

    @property
    def num_frequencies(self) -> int:
        return self.fft_length // 2 + 1

    def count_macs(self, frames: int) -> int:
        """Multiply-accumulates of `frames` frames."""
        return frames * self.num_frequencies * (2 * self.fft_length + self.num_mels)
