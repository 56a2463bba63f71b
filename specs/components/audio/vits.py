"""VITS (Kim et al. 2021): text to speech by a text encoder, durations, and a flow of latents for a vocoder.

The four parts share `speaker_size`: the width of the vector that says who speaks, in a model of several speakers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activation, Activations, Epsilon, LayerCount, Size, check_divides
from specs.components.costs import Cost, cost_conv1d, cost_linear, cost_norm
from specs.components.measured import MeasuredComponent

Odd = Annotated[int, Field(ge=1, le=1 << 10)]
Scale = Annotated[float, Field(ge=0, le=100)]
_LARGEST_LATENTS = 1 << 20


class VitsTextComponent(MeasuredComponent):
    """Characters or phonemes -> states, and the mean and log variance of the latents that each becomes.

    Post-norm layers of attention with learned positions within `window_size`, and two convolutions.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "activation", "attention_bias"})

    kind: Literal["text.vits"]
    vocab_size: Size
    hidden_size: Size = 192
    num_layers: LayerCount = 6
    num_heads: Size = 2
    mlp_size: Size = 768
    mlp_kernel: Size = Field(default=3, description="width of the convolutions that are the MLP")
    window_size: Size = Field(default=4, description="distances that have a learned vector, to both sides")
    attention_bias: bool = True
    activation: Activation = "relu"
    layer_norm_eps: Epsilon = 1e-5
    latent_size: Size = 192
    num_speakers: Size = 1
    speaker_size: Size | None = Field(default=None, description="width of a speaker's vector; absent: one speaker")
    characters: tuple[str, ...] = Field(
        default=(), description="what each id spells; bytes or bare ids are taken when absent"
    )
    add_blank: bool = Field(default=True, description="id 0 stands before, between and behind the characters")
    unknown: str = Field(default="<unk>", description="what a character without an id is read as")
    special_tokens: tuple[str, ...] = Field(
        default=(), description="of `characters`: those that part a text, and have no blanks of their own around them"
    )
    normalise: bool = Field(default=True, description="lower case, and what has no id is left out")
    romanised: bool = Field(default=False, description="trained on text in Latin letters (uroman)")
    language: str = ""

    @model_validator(mode="after")
    def _check_sizes(self) -> VitsTextComponent:
        check_divides(self.hidden_size, self.num_heads, size_name="hidden_size", heads_name="num_heads")
        if (self.num_speakers > 1) != (self.speaker_size is not None):
            raise ValueError("num_speakers above 1 and speaker_size belong together")
        if self.characters and len(self.characters) > self.vocab_size:
            raise ValueError(f"characters has {len(self.characters)} entries, vocab_size is {self.vocab_size}")
        return self

    def measure(self, tokens: int = 1) -> Cost:
        c = self.hidden_size
        cost = Cost(self.vocab_size * c) + cost_conv1d(c, 2 * self.latent_size, 1, tokens)
        if self.speaker_size:
            cost += Cost(self.num_speakers * self.speaker_size)
        positions = 2 * (2 * self.window_size + 1) * (c // self.num_heads)
        scores = Cost(positions, 2 * tokens * tokens * c, self.num_heads * tokens * tokens * 3 + 4 * tokens * c)
        for _ in range(self.num_layers):
            cost += cost_linear(c, 4 * c, tokens, bias=self.attention_bias) + scores
            cost += cost_norm(c) + cost_norm(c)
            cost += cost_conv1d(c, self.mlp_size, self.mlp_kernel, tokens)
            cost += cost_conv1d(self.mlp_size, c, self.mlp_kernel, tokens)
        return cost

    def count_macs(self, tokens: int) -> int:
        return self.measure(tokens).macs

    def count_table(self) -> int:
        return self.vocab_size * self.hidden_size

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        width = self.hidden_size + 2 * self.latent_size
        return Activations(layer=batch * self.measure(tokens).peak, interface=batch * tokens * width)


class VitsDurationComponent(MeasuredComponent):
    """States -> the logarithm of how many frames each token lasts.

    `stochastic`: noise through a flow of splines, conditioned on the states (section 2.2.2 of the paper); otherwise two
    convolutions.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "stochastic"})

    kind: Literal["audio.vits_durations"]
    stochastic: bool = True
    hidden_size: Size = 192
    kernel_size: Odd = 3
    filter_size: Size = Field(default=256, description="channels between the convolutions, where not stochastic")
    num_flows: Annotated[int, Field(ge=0, le=64)] = 4
    num_layers: Annotated[int, Field(ge=0, le=16)] = Field(
        default=3, description="dilated convolutions of a block; the i-th has a dilation of kernel_size^i"
    )
    num_bins: Annotated[int, Field(ge=1, le=999)] = Field(default=10, description="pieces of a spline")
    tail_bound: Annotated[float, Field(gt=0, le=1e4)] = Field(
        default=5.0, description="beyond this a spline leaves values as they are"
    )
    noise_scale: Scale = Field(default=0.8, description="how much durations vary")
    speaking_rate: Annotated[float, Field(gt=0, le=100)] = Field(default=1.0, description="above 1: faster")
    layer_norm_eps: Epsilon = Field(default=1e-5, description="where not stochastic")
    speaker_size: Size | None = None

    @model_validator(mode="after")
    def _check_kernel(self) -> VitsDurationComponent:
        check_odd(self.kernel_size, "kernel_size")
        return self

    @property
    def num_run_flows(self) -> int:
        """Flows that inference runs: the first one, which only training needs, is not among them."""
        return max(0, self.num_flows - 1)

    def measure(self, tokens: int = 1) -> Cost:
        c = self.hidden_size
        if not self.stochastic:
            cost = cost_conv1d(c, self.filter_size, self.kernel_size, tokens) + cost_norm(self.filter_size)
            cost += cost_conv1d(self.filter_size, self.filter_size, self.kernel_size, tokens)
            cost += cost_norm(self.filter_size) + cost_conv1d(self.filter_size, 1, 1, tokens)
            return cost + (cost_conv1d(self.speaker_size, c, 1, 1) if self.speaker_size else Cost())
        body = Cost()
        for _ in range(self.num_layers):
            body += cost_conv1d(c, c, self.kernel_size, tokens, groups=c) + cost_norm(c)
            body += cost_conv1d(c, c, 1, tokens) + cost_norm(c)
        cost = cost_conv1d(c, c, 1, tokens) + body + cost_conv1d(c, c, 1, tokens) + Cost(4)
        if self.speaker_size:
            cost += cost_conv1d(self.speaker_size, c, 1, 1)
        for _ in range(self.num_run_flows):
            cost += cost_conv1d(1, c, 1, tokens) + body + cost_conv1d(c, 3 * self.num_bins - 1, 1, tokens)
        return cost

    def count_macs(self, tokens: int) -> int:
        return self.measure(tokens).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, tokens = sizes["batch"], sizes["tokens"]
        return Activations(layer=batch * self.measure(tokens).peak, interface=batch * tokens * (self.hidden_size + 3))


class VitsFlowComponent(MeasuredComponent):
    """Latents as the text's prior draws them -> latents as the vocoder takes them: couplings of WaveNets, backwards."""

    kind: Literal["audio.vits_flow"]
    latent_size: Annotated[int, Field(ge=2, le=_LARGEST_LATENTS, multiple_of=2)] = 192
    hidden_size: Size = 192
    num_flows: LayerCount = 4
    num_layers: LayerCount = Field(default=4, description="of a flow's WaveNet")
    kernel_size: Odd = 5
    dilation_rate: Size = Field(default=1, description="the i-th layer has a dilation of dilation_rate^i")
    noise_scale: Scale = Field(default=0.667, description="how much the voice varies")
    speaker_size: Size | None = None

    @model_validator(mode="after")
    def _check_kernel(self) -> VitsFlowComponent:
        check_odd(self.kernel_size, "kernel_size")
        return self

    def measure(self, frames: int = 1) -> Cost:
        c, half = self.hidden_size, self.latent_size // 2
        cost = Cost()
        for _ in range(self.num_flows):
            cost += cost_conv1d(half, c, 1, frames) + cost_conv1d(c, half, 1, frames)
            if self.speaker_size:
                cost += cost_conv1d(self.speaker_size, 2 * c * self.num_layers, 1, 1)
            for layer in range(self.num_layers):
                last = layer == self.num_layers - 1
                cost += cost_conv1d(c, 2 * c, self.kernel_size, frames)
                cost += cost_conv1d(c, c if last else 2 * c, 1, frames)
        return cost

    def count_macs(self, tokens: int) -> int:
        """`tokens` counts frames."""
        return self.measure(tokens).macs

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, frames = sizes["batch"], sizes["frames"]
        return Activations(layer=batch * self.measure(frames).peak, interface=2 * batch * frames * self.latent_size)


def check_odd(kernel: int, name: str) -> None:
    """ValueError unless a convolution of this kernel has a middle, and so keeps the length of what it reads."""
    if kernel % 2 == 0:
        raise ValueError(f"{name} {kernel} is even; an odd one keeps the length")
