"""wav2vec 2.0 with a CTC head (Baevski et al. 2020), and HuBERT, which is the same network (Hsu et al. 2021).

    samples -> zero mean, unit variance -> strided convolutions -> norm, Linear -> + position convolution
            -> transformer layers -> logits

Padding: samples beyond `lengths` are set to 0 after the normalisation. With `mask_padding` (the large models) frames
that reach into it are 0 before the layers and attention does not see them, so that a padded row equals the row alone;
without it (the base models, whose GroupNorm averages over all frames anyhow) they are seen, as in training.

Shape letters: B batch, L samples, T frames, C channels, V vocabulary, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs import ops
from specs.components import Activation, Wav2Vec2Component
from specs.models.layers import Mlp, activate

_VARIANCE_EPS = 1e-7  # of Wav2Vec2FeatureExtractor
_NORM_EPS = 1e-5  # of the norms between the strided convolutions and in the adapters, whatever the config says


class FeatureConv(nn.Module):
    """A strided convolution, its norm over channels or over time where it has one, and the activation."""

    def __init__(self, config: Wav2Vec2Component, index: int) -> None:
        super().__init__()
        inputs = config.conv_sizes[index - 1] if index else 1
        size = config.conv_sizes[index]
        self.conv = nn.Conv1d(
            inputs, size, config.conv_kernels[index], stride=config.conv_strides[index], bias=config.feature_bias
        )
        self.group_norm: nn.Module | None = None
        self.layer_norm: nn.Module | None = None
        if config.feature_norm == "layer":
            self.layer_norm = nn.LayerNorm(size, eps=_NORM_EPS)
        elif index == 0:
            self.group_norm = nn.GroupNorm(size, size, eps=_NORM_EPS)
        self.activation: Activation = config.feature_activation

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = self.conv(x_BCT)
        if self.layer_norm is not None:
            x_BCT = self.layer_norm(x_BCT.transpose(1, 2)).transpose(1, 2)
        if self.group_norm is not None:
            x_BCT = self.group_norm(x_BCT)
        return activate(x_BCT, self.activation)


class PositionConv(nn.Module):
    """What stands for positions: a wide grouped convolution over the frames. An even kernel's last frame is cut."""

    def __init__(self, config: Wav2Vec2Component) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.position_kernel
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.position_groups)
        self.is_even = kernel % 2 == 0
        self.activation: Activation = config.feature_activation

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BCT = self.conv(x_BTC.transpose(1, 2))
        if self.is_even:
            x_BCT = x_BCT[:, :, :-1]
        return activate(x_BCT, self.activation).transpose(1, 2)


class BiasedAttention(nn.Module):
    """Multi-head self attention, with biases, and with a bias of the scores where padding is masked."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def _split_heads(self, x_BTC: Tensor) -> Tensor:
        batch, frames, _ = x_BTC.shape
        return x_BTC.reshape(batch, frames, -1, self.head_dim).transpose(1, 2)

    def forward(self, x_BTC: Tensor, bias_B11T: Tensor | None) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (self._split_heads(part) for part in self.qkv(x_BTC).chunk(3, dim=-1))
        mixed_BHTD = ops.attention(q_BHTD, k_BHTD, v_BHTD, bias_B11T, scale=self.head_dim**-0.5)
        out_BTC: Tensor = self.out(mixed_BHTD.transpose(1, 2).flatten(2))
        return out_BTC


class Adapter(nn.Module):
    """up(relu(down(norm(x)))): what MMS has for each language (Pratap et al. 2023)."""

    def __init__(self, hidden_size: int, adapter_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.down = nn.Linear(hidden_size, adapter_size)
        self.up = nn.Linear(adapter_size, hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        out_BTC: Tensor = self.up(self.down(self.norm(x_BTC)).relu())
        return out_BTC


class Wav2Vec2Layer(nn.Module):
    """Post-norm, norm(x + f(x)); or with `norm_first` x + f(norm(x)), and an adapter where there is one."""

    def __init__(self, config: Wav2Vec2Component) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_first = config.norm_first
        self.attention = BiasedAttention(width, config.num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, config.mlp_width, config.activation)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.adapter = Adapter(width, config.adapter_size) if config.adapter_size else None

    def forward(self, x_BTC: Tensor, bias_B11T: Tensor | None) -> Tensor:
        if not self.norm_first:
            x_BTC = self.attention_norm(x_BTC + self.attention(x_BTC, bias_B11T))
            out_BTC: Tensor = self.mlp_norm(x_BTC + self.mlp(x_BTC))
            return out_BTC
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), bias_B11T)
        x_BTC = x_BTC + self.mlp(self.mlp_norm(x_BTC))
        return x_BTC if self.adapter is None else x_BTC + self.adapter(x_BTC)


class Wav2Vec2(nn.Module):
    """samples [B, L], lengths [B] -> logits [B, T, V]; T = about L / 320, and rows end where their sound does."""

    def __init__(self, config: Wav2Vec2Component) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.features = nn.ModuleList(FeatureConv(config, index) for index in range(len(config.conv_sizes)))
        self.projection_norm = (
            nn.LayerNorm(config.conv_sizes[-1], eps=config.layer_norm_eps) if config.projection_norm else None
        )
        self.projection = nn.Linear(config.conv_sizes[-1], width)
        self.positions = PositionConv(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Wav2Vec2Layer(config) for _ in range(config.num_layers))
        self.head = nn.Linear(width, config.vocab_size)

    def normalize_samples(self, samples_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + 1e-7) over the valid samples of each row where the model wants it; else x.

        What lies beyond is 0.
        """
        valid_BL = torch.arange(samples_BL.shape[1], device=lengths_B.device) < lengths_B[:, None]
        if not self.config.normalize:
            return samples_BL * valid_BL
        count_B1 = lengths_B[:, None].to(samples_BL.dtype)
        mean_B1 = (samples_BL * valid_BL).sum(1, keepdim=True) / count_B1
        centred_BL = (samples_BL - mean_B1) * valid_BL
        variance_B1 = centred_BL.square().sum(1, keepdim=True) / count_B1
        return centred_BL / (variance_B1 + _VARIANCE_EPS).sqrt()

    def find_seen(self, frames: int, lengths_B: Tensor) -> Tensor:
        """Which frames [B, T] see valid samples only: frame t sees `smallest_input` from t `total_stride` on."""
        end_T = torch.arange(frames, device=lengths_B.device) * self.config.total_stride + self.config.smallest_input
        return end_T <= lengths_B[:, None]

    def forward(self, samples_BL: Tensor, lengths_B: Tensor) -> Tensor:
        logits_BTV: Tensor = self.head(self.encode(samples_BL, lengths_B))
        return logits_BTV

    def encode(self, samples_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """States [B, T, C] before the head."""
        x_BCT = self.normalize_samples(samples_BL, lengths_B)[:, None]
        for feature in self.features:
            x_BCT = feature(x_BCT)
        x_BTC = x_BCT.transpose(1, 2)
        x_BTC = self.projection(x_BTC if self.projection_norm is None else self.projection_norm(x_BTC))
        bias_B11T = None
        if self.config.mask_padding:
            seen_BT = self.find_seen(x_BTC.shape[1], lengths_B)
            x_BTC = x_BTC * seen_BT[:, :, None]
            bias_BT = torch.zeros_like(seen_BT, dtype=x_BTC.dtype)
            bias_B11T = bias_BT.masked_fill(~seen_BT, torch.finfo(x_BTC.dtype).min)[:, None, None, :]
        x_BTC = x_BTC + self.positions(x_BTC)
        if not self.config.norm_first:
            x_BTC = self.norm(x_BTC)
        for layer in self.layers:
            x_BTC = layer(x_BTC, bias_B11T)
        states_BTC: Tensor = self.norm(x_BTC) if self.config.norm_first else x_BTC
        return states_BTC
