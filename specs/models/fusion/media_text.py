"""A language model that reads pictures, films and sounds as tokens: LLaVA (Liu et al. 2023) and what is built alike.

    image -> tower's hidden states of some layers -> projector, or perceiver -> N embeddings
    text  -> embedding of each token, or the next embedding of a medium where the token is the media token -> decoder

Shape letters: B batch, T tokens, N places of a medium, M embeddings of all media of a row, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import ProjectorComponent
from specs.models.layers import activate
from specs.models.text.causal import CausalModel, read_prompt
from specs.models.vision.vit import VisionTransformer


class PatchFeatures(nn.Module):
    """image [B, channels, height, width] in [0, 1] -> features of the patches [B, N, C]: what a perceiver reads."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.tower.normalise_tokens(self.tower.forward_features(image_BCHW, keep_class_token=False))


class LayerFeatures(nn.Module):
    """image [B, channels, height, width] in [0, 1] -> hidden states [B, N, C] of the layers that a projector reads."""

    def __init__(self, tower: VisionTransformer, projector: ProjectorComponent) -> None:
        super().__init__()
        self.tower = tower
        self.feature_layers = projector.feature_layers or (tower.config.num_layers,)
        self.skip_tokens = projector.skip_tokens

    def forward(self, image_BCHW: Tensor) -> Tensor:
        states = [self.tower.embed(image_BCHW)]
        for layer in self.tower.layers[: max(self.feature_layers)]:
            states.append(layer(states[-1]))
        picked = [states[number][:, self.skip_tokens :] for number in self.feature_layers]
        return picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)


class Projector(nn.Module):
    """Two Linears around an activation: image features [B, N, C] -> embeddings [B, N, width of the decoder]."""

    def __init__(self, config: ProjectorComponent, *, image_size: int, text_size: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(image_size, text_size, bias=config.bias)
        self.out = nn.Linear(text_size, text_size, bias=config.bias)

    def forward(self, features_BNC: Tensor) -> Tensor:
        embeddings_BNC: Tensor = self.out(activate(self.up(features_BNC), self.activation))
        return embeddings_BNC


class PrefillWithMedia(nn.Module):
    """token_ids [B, T], lengths [B], media_embeddings [B, M, C] -> as `specs.models.text.causal.Prefill`.

    The k-th media token of a row stands for the k-th of its embeddings; those beyond are not read, so that a row may
    have fewer media than another, or none.
    """

    def __init__(self, decoder: CausalModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor, media_embeddings_BMC: Tensor) -> tuple[Tensor, ...]:
        x_BTC = self.decoder.embed(token_ids_BT)
        assert self.decoder.media_token is not None
        is_media_BT = token_ids_BT.eq(self.decoder.media_token)
        last = media_embeddings_BMC.shape[1] - 1
        index_BT = (is_media_BT.long().cumsum(1) - 1).clamp(min=0, max=last)
        media_BTC = media_embeddings_BMC.gather(1, index_BT[:, :, None].expand(-1, -1, x_BTC.shape[2]))
        x_BTC = torch.where(is_media_BT[:, :, None], media_BTC.to(x_BTC.dtype), x_BTC)
        return read_prompt(self.decoder, x_BTC, lengths_B)
