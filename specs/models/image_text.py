"""LLaVA (Liu et al. 2023): a language model that reads pictures as tokens.

    image -> tower's hidden states of some layers -> projector -> N embeddings
    text  -> embedding of each token, or of the next piece of a picture where the token is the image token -> decoder

Shape letters: B batch, T tokens, N tokens of a picture, I tokens of all pictures of a row, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components import ProjectorComponent
from specs.models.causal import CausalModel, read_prompt
from specs.models.layers import activate
from specs.models.vision import VisionTransformer


class ImageFeatures(nn.Module):
    """image [B, channels, height, width] in [0, 1] -> hidden states [B, N, C] of the layers that are read."""

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


class PrefillWithImages(nn.Module):
    """token_ids [B, T], lengths [B], image_embeddings [B, I, C] -> as `specs.models.causal.Prefill`.

    The k-th image token of a row stands for the k-th of its image embeddings; those beyond are not read, so that a row
    may have fewer pictures than another, or none.
    """

    def __init__(self, decoder: CausalModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, token_ids_BT: Tensor, lengths_B: Tensor, image_embeddings_BIC: Tensor) -> tuple[Tensor, ...]:
        x_BTC = self.decoder.embed(token_ids_BT)
        assert self.decoder.image_token is not None
        is_image_BT = token_ids_BT.eq(self.decoder.image_token)
        last = image_embeddings_BIC.shape[1] - 1
        index_BT = (is_image_BT.long().cumsum(1) - 1).clamp(min=0, max=last)
        image_BTC = image_embeddings_BIC.gather(1, index_BT[:, :, None].expand(-1, -1, x_BTC.shape[2]))
        x_BTC = torch.where(is_image_BT[:, :, None], image_BTC.to(x_BTC.dtype), x_BTC)
        return read_prompt(self.decoder, x_BTC, lengths_B)
