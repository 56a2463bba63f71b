"""A generator of blocks: one decoder for all, a class for each mode, and mode and shape predicted like the rest.

    start -> [mode, sizes, tokens] -> [mode, sizes, tokens] -> ... -> end

Every element is embedded by whom it belongs to (the structure, or the block's mode) and gets a position that counts
from the start of its block; one decoder reads the stream; and from the state behind an element the next one is
predicted by whom it will belong to: the structure's mode head behind a finished block, its size head behind a mode,
the mode's own head behind the last size and behind each token.

A `Mode` holds all that is particular to one: Embed (`embed`), Target (`make_targets`), Loss (`compute_loss`),
Distribution (`distribute`) and Sample (`sample`). Modes have vocabularies of their own.

Shape letters: B batch, T elements, C channels, V a mode's vocabulary, M modes, Z sizes.

Not here: queues that gather blocks of one mode into batches for training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from specs.components import Gpt2Component
from specs.components.blocks import BlockDecoderComponent, ModeComponent, StructureComponent
from specs.models.text.causal import Cache
from specs.models.text.gpt2 import Gpt2Layer

_SLOWEST = 10000.0  # of the positions' wavelengths, over 2 pi


@dataclass(frozen=True)
class Block:
    """A mode's index, its shape, and prod(shape) tokens of the mode's vocabulary."""

    mode: int
    shape: tuple[int, ...]
    tokens: tuple[int, ...]


class Embed(nn.Module):
    """token_ids, positions in their blocks [B, T] -> x [B, T, C]: a table, and sinusoids (Vaswani et al. 2017)."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)

    def forward(self, token_ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTC: Tensor = self.token_embedding(token_ids_BT)
        return x_BTC + make_sinusoids(positions_BT, x_BTC.shape[-1], x_BTC.dtype)


@final
class Mode(nn.Module):
    """Text or image: what its blocks are made of, and everything that depends on it."""

    def __init__(self, config: ModeComponent) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def make_targets(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be predicted behind each element from the last size on: tokens [B, T], and which count [B, T].

        The states are those behind the last size and behind all tokens but the last: shifted by one.
        """
        return tokens_BT, torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]

    def distribute(self, states: Tensor) -> Tensor:
        """States [..., C] -> logits [..., V]."""
        logits: Tensor = self.head(states)
        return logits

    def compute_loss(self, logits_BTV: Tensor, targets_BT: Tensor, counts_BT: Tensor) -> Tensor:
        """Mean cross entropy, in nats, over what counts."""
        losses = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
        return (losses * counts_BT.flatten()).sum() / counts_BT.sum().clamp(min=1)

    def sample(
        self, logits_BV: Tensor, *, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Token ids [B]: the likeliest, or drawn."""
        return draw(logits_BV, temperature=temperature, generator=generator)


@final
class Structure(nn.Module):
    """Which mode comes next (the last: none, the stream ends), and how large each dimension is."""

    def __init__(self, config: StructureComponent) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config.vocab_size, config.hidden_size)
        self.mode_head = nn.Linear(config.hidden_size, config.num_modes + 1)
        self.size_head = nn.Linear(config.hidden_size, config.max_size)

    def forward(self, state_BC: Tensor) -> tuple[Tensor, Tensor]:
        """State [B, C] -> mode logits [B, M + 1], size logits [B, Z]; size z stands at z - 1."""
        return self.mode_head(state_BC), self.size_head(state_BC)

    def name_mode(self, mode: int) -> int:
        """The id of a mode; 0 is the start of the stream."""
        return 1 + mode

    def name_size(self, size: int) -> int:
        """The id of a size, which is 1 or more."""
        return self.config.num_modes + size


@final
class BlockDecoder(nn.Module):
    """x [B, T, C] -> normalised states [B, T, C], over what came before."""

    def __init__(self, config: BlockDecoderComponent) -> None:
        super().__init__()
        self.config = config
        layer_config = cast(Gpt2Component, config)  # a layer asks for sizes only
        self.layers = nn.ModuleList(Gpt2Layer(layer_config, layer) for layer in range(config.num_layers))
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x_BTC: Tensor, pasts: Sequence[Cache] | None = None, start_B: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        caches = []
        for index, layer in enumerate(self.layers):
            x_BTC, cache = layer(x_BTC, None if pasts is None else pasts[index], start_B)
            caches.append(cache)
        return self.output_norm(x_BTC), caches


@final
class ReadStream(nn.Module):
    """x [B, T, C], lengths [B] -> the state [B, C] behind each row's last element, then keys and values by layer."""

    def __init__(self, decoder: BlockDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x_BTC: Tensor, lengths_B: Tensor) -> tuple[Tensor, ...]:
        states_BTC, caches = self.decoder(x_BTC)
        last_B1C = (lengths_B - 1)[:, None, None].expand(-1, 1, states_BTC.shape[2])
        return states_BTC.gather(1, last_B1C).squeeze(1), *(tensor for cache in caches for tensor in cache)


@final
class ReadElement(nn.Module):
    """x [B, 1, C], lengths [B] and the cache -> the state [B, C], then the updated keys and values by layer."""

    def __init__(self, decoder: BlockDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x_B1C: Tensor, lengths_B: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        pasts = list(zip(past[::2], past[1::2], strict=True))
        states_B1C, caches = self.decoder(x_B1C, pasts, lengths_B)
        return states_B1C.squeeze(1), *(tensor for cache in caches for tensor in cache)


@final
class BlockGenerator(nn.Module):
    """All parts together, as training sees them: the reference for the graphs and for a host's loop."""

    def __init__(self, decoder: BlockDecoder, structure: Structure, modes: Sequence[Mode]) -> None:
        super().__init__()
        self.decoder, self.structure, self.modes = decoder, structure, nn.ModuleList(modes)

    def embed_blocks(self, blocks: Sequence[Block]) -> Tensor:
        """The stream so far, [1, T, C], the start first."""
        parts = [self._embed(self.structure.embed, [0], 0)]
        for block in blocks:
            names = [self.structure.name_mode(block.mode), *map(self.structure.name_size, block.shape)]
            parts.append(self._embed(self.structure.embed, names, 0))
            parts.append(self._embed(self._get_mode(block.mode).embed, block.tokens, len(names)))
        return torch.cat(parts, dim=1)

    def generate(self, blocks: Sequence[Block] = (), *, max_blocks: int) -> list[Block]:
        """The likeliest continuation; every state is computed from the whole stream again."""
        made = list(blocks)
        while len(made) < len(blocks) + max_blocks:
            x_1TC = self.embed_blocks(made)
            mode = int(self.structure.mode_head(self._read(x_1TC)).argmax())
            if mode == len(self.modes):
                break
            names = [self.structure.name_mode(mode)]
            shape: tuple[int, ...] = ()
            for largest in self._get_mode(mode).config.max_shape:
                seen = torch.cat([x_1TC, self._embed(self.structure.embed, names, 0)], dim=1)
                shape += (1 + int(self.structure.size_head(self._read(seen))[0, :largest].argmax()),)
                names.append(self.structure.name_size(shape[-1]))
            x_1TC = torch.cat([x_1TC, self._embed(self.structure.embed, names, 0)], dim=1)
            tokens: list[int] = []
            while len(tokens) < math.prod(shape):
                seen = torch.cat([x_1TC, self._embed(self._get_mode(mode).embed, tokens, len(names))], dim=1)
                tokens.append(int(self._get_mode(mode).sample(self._get_mode(mode).distribute(self._read(seen)))))
            made.append(Block(mode, shape, tuple(tokens)))
        return made

    def compute_loss(self, blocks: Sequence[Block]) -> Tensor:
        """Next-sequence prediction, in nats: mode, shape and tokens of every block, and the end."""
        states_1TC, _ = self.decoder(self.embed_blocks(blocks))
        losses, at = [], 0
        for block in blocks:
            mode = self._get_mode(block.mode)
            losses.append(_cross_entropy(self.structure.mode_head(states_1TC[0, at]), block.mode))
            for offset, size in enumerate(block.shape, 1):
                losses.append(_cross_entropy(self.structure.size_head(states_1TC[0, at + offset]), size - 1))
            first = at + len(block.shape) + 1
            targets, counts = mode.make_targets(torch.tensor([block.tokens]), torch.tensor([len(block.tokens)]))
            logits = mode.distribute(states_1TC[:, first : first + len(block.tokens)])
            losses.append(mode.compute_loss(logits, targets, counts))
            at = first + len(block.tokens)
        losses.append(_cross_entropy(self.structure.mode_head(states_1TC[0, at]), len(self.modes)))
        return torch.stack(losses).mean()

    def _get_mode(self, mode: int) -> Mode:
        return cast(Mode, self.modes[mode])

    def _read(self, x_1TC: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(x_1TC)[0][:, -1])

    def _embed(self, embed: nn.Module, ids: Sequence[int], first: int) -> Tensor:
        positions = torch.arange(first, first + len(ids))[None]
        return cast(Tensor, embed(torch.tensor([list(ids)], dtype=torch.int64), positions))


def make_sinusoids(positions_BT: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, of the position at wavelengths from 2 pi to 2 pi _SLOWEST: [B, T, size]."""
    exact = torch.promote_types(dtype, torch.float32)
    half = size // 2
    frequency = torch.tensor([_SLOWEST ** (-index / half) for index in range(half)], dtype=exact)
    angle = positions_BT[..., None].to(exact) * frequency
    return functional.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, size % 2)).to(dtype)


def draw(logits_BV: Tensor, *, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """The likeliest ids [B] at temperature 0, else drawn."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator).squeeze(1)


def _cross_entropy(logits_V: Tensor, target: int) -> Tensor:
    return functional.cross_entropy(logits_V[None], torch.tensor([target]))
