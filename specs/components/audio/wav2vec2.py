"""wav2vec 2.0 and what is built like it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, Size, TransformerSizes, check_divides


class Wav2Vec2Component(TransformerSizes):
    """wav2vec 2.0 with a CTC head (Baevski et al. 2020): samples -> strided convolutions -> transformer -> logits.

    HuBERT (Hsu et al. 2021) is the same network. `feature_norm` group: GroupNorm after the first convolution alone,
    as in the base models; layer: LayerNorm after each, as in the large ones. `norm_first`: pre-norm layers.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "activation", "feature_activation", "feature_norm", "feature_bias", "norm_first", "mask_padding"}
        | {"projection_norm", "conv_kernels", "conv_strides"}
    )

    kind: Literal["audio.wav2vec2"]
    vocab_size: Size
    sample_rate: Size = Field(default=16000, description="samples a second")
    conv_sizes: tuple[Size, ...] = Field(default=(512,) * 7, description="channels after each strided convolution")
    conv_kernels: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    feature_norm: Literal["group", "layer"] = "group"
    feature_bias: bool = Field(default=False, description="of the strided convolutions")
    feature_activation: Activation = "gelu"
    projection_norm: bool = Field(default=True, description="LayerNorm before the projection to hidden_size")
    position_kernel: Size = Field(default=128, description="width of the convolution that stands for positions")
    position_groups: Size = 16
    activation: Activation = "gelu"
    norm_first: bool = Field(default=False, description="pre-norm layers and a last norm, as in the large models")
    adapter_size: Size | None = Field(default=None, description="width of each layer's adapter (MMS); none when absent")
    normalize: bool = Field(default=True, description="samples to zero mean and unit variance, in the graph")
    mask_padding: bool = Field(
        default=False, description="attention does not see padding; the base models were trained to see it"
    )
    num_samples: Size | None = Field(
        default=None, description="samples that a fusion of modalities hears at once, which needs it; else any number"
    )
    blank_token: int = Field(default=0, ge=0, description="id of CTC's blank")
    word_delimiter: str = Field(default="|", description="label that stands for a space")
    lower_case: bool = Field(default=False, description="of the text that is shown")
    layer_norm_eps: Epsilon = 1e-5

    @model_validator(mode="after")
    def _check_convolutions(self) -> Wav2Vec2Component:
        if not len(self.conv_sizes) == len(self.conv_kernels) == len(self.conv_strides) >= 1:
            raise ValueError(
                "conv_sizes, conv_kernels and conv_strides need the same number of layers, got"
                f" {len(self.conv_sizes)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        check_divides(self.hidden_size, self.position_groups, size_name="hidden_size", heads_name="position_groups")
        if self.adapter_size and not self.norm_first:
            raise ValueError("adapter_size belongs to models with norm_first: true")
        if self.num_samples is not None and self.num_samples < self.smallest_input:
            raise ValueError(f"num_samples {self.num_samples} is less than one frame, {self.smallest_input} samples")
        if self.blank_token >= self.vocab_size:
            raise ValueError(f"blank_token {self.blank_token} is outside the vocabulary of {self.vocab_size}")
        return self

    @property
    def smallest_input(self) -> int:
        """Samples that one frame needs: 400 in every published model, 25 ms."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def total_stride(self) -> int:
        """Samples from one frame to the next: 320 in every published model, 20 ms."""
        return math.prod(self.conv_strides)

    def list_frame_counts(self, samples: int) -> list[int]:
        """Frames after each convolution."""
        counts = []
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
            counts.append(samples)
        return counts

    def _list_conv_weights(self) -> list[int]:
        inputs = (1, *self.conv_sizes[:-1])
        return [i * o * k for i, o, k in zip(inputs, self.conv_sizes, self.conv_kernels, strict=True)]

    def count_parameters(self) -> int:
        c, last = self.hidden_size, self.conv_sizes[-1]
        normed = sum(self.conv_sizes) if self.feature_norm == "layer" else self.conv_sizes[0]
        features = sum(self._list_conv_weights()) + 2 * normed + (sum(self.conv_sizes) if self.feature_bias else 0)
        projection = (2 * last if self.projection_norm else 0) + last * c + c
        positions = c * c // self.position_groups * self.position_kernel + c
        adapter = 2 * c + (2 * c + 1) * self.adapter_size + c if self.adapter_size else 0
        layers = self.num_layers * (self.count_layer_parameters() + adapter)
        return features + projection + positions + 2 * c + layers + (c + 1) * self.vocab_size

    def count_macs(self, tokens: int) -> int:
        """Of ten seconds, where `num_samples` does not say how many: sound has no tokens."""
        c, counts = self.hidden_size, self.list_frame_counts(self.num_samples or 10 * self.sample_rate)
        features = sum(weight * count for weight, count in zip(self._list_conv_weights(), counts, strict=True))
        frames, adapter = counts[-1], 2 * c * (self.adapter_size or 0)
        rest = self.conv_sizes[-1] * c + c * c // self.position_groups * self.position_kernel + c * self.vocab_size
        return features + frames * (rest + self.num_layers * adapter) + self.num_layers * self.count_layer_macs(frames)

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, counts = sizes["batch"], self.list_frame_counts(max(sizes["samples"], self.smallest_input))
        widest = max(size * count for size, count in zip(self.conv_sizes, counts, strict=True))
        layer = self.count_layer_activations(batch, counts[-1])
        interface = batch * (sizes["samples"] + counts[-1] * self.vocab_size)
        return Activations(layer=max(2 * batch * widest, layer), interface=interface)
