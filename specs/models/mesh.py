"""Text to shape: a conditioned transformer makes a triplane, and a small network reads distance and colour from it.

    features, latent -> condition;  tokens of three planes -> adaLN layers -> planes of features
    point (x, y, z) -> planes read at (x, y), (x, z), (y, z), added -> MLP -> distance to the surface, colour

Triplanes are those of EG3D (Chan et al. 2022), the transformer from text to triplane that of LRM's kin (Hong et al.
2024, Li et al. 2024), its conditioning DiT's adaLN (Peebles & Xie 2022). The network corrects the distance of a
sphere, as SDF networks are initialised, so that a model without training already has a surface.

Shape letters: B batch, T tokens of all planes, C channels, P cells along a plane, N points.

Not here: marching cubes (a host does that), and the renderer that training needs.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs import ops
from specs.components.mesh import FieldComponent, TriplaneComponent
from specs.models.layers import Mlp, SelfAttention

_AXES = ((0, 1), (0, 2), (1, 2))  # of a point, for each plane


class ConditionedLayer(nn.Module):
    """x = x + gate attention(adaLN(x)); x = x + gate mlp(adaLN(x)), all six vectors from the condition."""

    def __init__(self, config: TriplaneComponent) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)
        self.attention = SelfAttention(config.hidden_size, config.num_heads, causal=False)
        self.mlp = Mlp(config.hidden_size, config.mlp_size, "gelu_tanh")

    def forward(self, x_BTC: Tensor, condition_BC: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition_BC).chunk(6, dim=1)
        mixed_BTC = self.attention(ops.ada_layer_norm(x_BTC, shift_a, scale_a, eps=self.eps))
        x_BTC = x_BTC + gate_a[:, None] * mixed_BTC
        out_BTC: Tensor = x_BTC + gate_m[:, None] * self.mlp(ops.ada_layer_norm(x_BTC, shift_m, scale_m, eps=self.eps))
        return out_BTC


class Triplane(nn.Module):
    """text_features [B, text], latent [B, latent] -> planes [B, 3, C, P, P]."""

    def __init__(self, config: TriplaneComponent) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.position_embedding = nn.Parameter(torch.empty(config.num_tokens, width))
        self.text = nn.Linear(config.text_size, width)
        self.latent = nn.Linear(config.latent_size, width)
        self.layers = nn.ModuleList(ConditionedLayer(config) for _ in range(config.num_layers))
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.plane_channels * config.patch_size**2)

    def forward(self, text_BC: Tensor, latent_BC: Tensor) -> Tensor:
        config = self.config
        condition_BC = functional.silu(self.text(text_BC) + self.latent(latent_BC))
        x_BTC = self.position_embedding.expand(text_BC.shape[0], -1, -1)
        for layer in self.layers:
            x_BTC = layer(x_BTC, condition_BC)
        shift_BC, scale_BC = self.modulation(condition_BC).chunk(2, dim=1)
        x_BTC = self.output(ops.ada_layer_norm(x_BTC, shift_BC, scale_BC, eps=config.layer_norm_eps))
        side, patch = config.plane_tokens, config.patch_size
        cells = x_BTC.reshape(-1, 3, side, side, config.plane_channels, patch, patch)
        planes = cells.permute(0, 1, 4, 2, 5, 3, 6)
        result: Tensor = planes.reshape(-1, 3, config.plane_channels, config.plane_size, config.plane_size)
        return result


class Field(nn.Module):
    """planes [B, 3, C, P, P], points [B, N, 3] in [-1, 1] -> distance [B, N] (negative inside), colour [B, N, 3]."""

    def __init__(self, config: FieldComponent) -> None:
        super().__init__()
        self.config = config
        sizes = [config.plane_channels, *[config.hidden_size] * config.num_layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = nn.Linear(config.hidden_size, 4)

    def forward(self, planes_B3CPP: Tensor, points_BN3: Tensor) -> tuple[Tensor, Tensor]:
        x_BNC = self.read_planes(planes_B3CPP, points_BN3)
        for layer in self.layers:
            x_BNC = functional.silu(layer(x_BNC))
        out_BN4 = self.output(x_BNC)
        sphere_BN = points_BN3.square().sum(-1).clamp(min=1e-12).sqrt() - self.config.radius
        return sphere_BN + 0.5 * self.config.radius * out_BN4[..., 0].tanh(), out_BN4[..., 1:].sigmoid()

    def read_planes(self, planes_B3CPP: Tensor, points_BN3: Tensor) -> Tensor:
        """Each point's features, the three planes' added: [B, N, C]."""
        read_BCN = planes_B3CPP.new_zeros(())
        for plane, (across, down) in enumerate(_AXES):
            places_B1N2 = torch.stack([points_BN3[..., across], points_BN3[..., down]], dim=-1)[:, None]
            read_BC1N = functional.grid_sample(
                planes_B3CPP[:, plane], places_B1N2, mode="bilinear", padding_mode="border", align_corners=False
            )
            read_BCN = read_BCN + read_BC1N[:, :, 0]
        return read_BCN.transpose(1, 2)
