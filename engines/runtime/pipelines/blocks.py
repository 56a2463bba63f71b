"""A stream of blocks, each of a mode and a shape that the model chooses; text and pictures in, text and pictures out.

    <mode>.embed, structure.embed (token_ids [B, T], positions [B, T])  -> x [B, T, C]
    prefill(x, lengths)                                                 -> state [B, C], keys_i, values_i
    decode(x [B, 1, C], lengths, past_*)                                -> state [B, C], keys_i, values_i
    structure.head(state) -> mode_logits [B, M + 1], size_logits [B, Z];  <mode>.head(state) -> logits [B, V]

The stream is the start, then for each block its mode, its sizes and its tokens; positions count from the block's start.
Ids of the structure: 0 the start, 1 ... M the modes, then the sizes from 1 on. Mode M ends the stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import get_batch_range, pad_rows
from engines.runtime.pipelines.stages.caches import choose_kept, fit_cache, get_axis_range, take_cache_names
from engines.runtime.pipelines.stages.sampling import Sampler, Sampling
from engines.runtime.request import Answer, Picture, Request, require
from engines.runtime.text.tokenizers import make_tokenizer
from specs.bundle import Manifest
from specs.errors import BundleError, InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

_DEFAULT_BLOCKS = 4
_MODE_FIELDS = "pipeline.modes"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block: the name of its mode, its shape, and prod(shape) ids of the mode's vocabulary."""

    mode: str
    shape: tuple[int, ...]
    tokens: tuple[int, ...]


@final
class _Mode:
    """One entry of the manifest's modes."""

    def __init__(self, entry: Mapping[str, Any], graphs: Mapping[str, GraphSession]) -> None:
        self.name = take_field(entry, "name", str, at=_MODE_FIELDS)
        self.kind = take_field(entry, "kind", str, at=_MODE_FIELDS)
        self.vocab_size = take_field(entry, "vocab_size", int, at=_MODE_FIELDS)
        shape: list[Any] = take_field(entry, "max_shape", list, at=_MODE_FIELDS)
        if not shape or not all(type(size) is int and size > 0 for size in shape):
            raise BundleError("manifest: pipeline.modes.max_shape must be sizes", fix="export the bundle again")
        self.max_shape = tuple(shape)
        self.embed = take_graph(entry, "embed", graphs, inputs=("token_ids", "positions"), outputs=("x",))
        self.head = take_graph(entry, "head", graphs, inputs=("state",), outputs=("logits",))


@final
class BlockGeneration(Pipeline):
    """Greedy by default; with a temperature, modes, sizes and tokens are drawn."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._present = take_cache_names(config)
        past = [f"past_{name}" for name in self._present]
        outputs = ["state", *self._present]
        self._prefill = take_graph(config, "prefill", graphs, inputs=("x", "lengths"), outputs=outputs)
        self._decode = take_graph(config, "decode", graphs, inputs=("x", "lengths", *past), outputs=outputs)
        self._embed = take_graph(config, "structure_embed", graphs, inputs=("token_ids", "positions"), outputs=("x",))
        heads = ("mode_logits", "size_logits")
        self._head = take_graph(config, "structure_head", graphs, inputs=("state",), outputs=heads)
        entries: list[Any] = take_field(config, "modes", list)
        if not entries or not all(isinstance(entry, dict) for entry in entries):
            raise BundleError("manifest: pipeline.modes must be a list of mappings", fix="export the bundle again")
        self._modes = [_Mode(entry, graphs) for entry in entries]
        kinds = [mode.kind for mode in self._modes]
        flat = all(len(mode.max_shape) == 2 for mode in self._modes if mode.kind == "image")
        if kinds.count("text") != 1 or not flat:
            raise BundleError(
                "manifest: pipeline.modes needs one text, and images of two axes",
                got=", ".join(kinds),
                fix="export the bundle again",
            )
        self._max_cache = take_field(config, "max_cache", int)
        self.tokenizer = make_tokenizer(folder, manifest, take_field(config, "tokenizer", dict))

    def generate(
        self,
        blocks: Sequence[Block] = (),
        *,
        max_blocks: int = _DEFAULT_BLOCKS,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[Block]:
        """The blocks that follow `blocks`, each as it is finished, until the model ends or `max_blocks` are made.

        Raises:
            InputError: a block that its mode cannot have.
        """
        for block in blocks:
            self._check_block(block)
        return self._run(list(blocks), max_blocks, Sampler(Sampling(temperature=temperature, top_k=top_k, seed=seed)))

    def _run(self, blocks: list[Block], max_blocks: int, sampler: Sampler) -> Iterator[Block]:
        stream = _Stream(self, self._embed_blocks(blocks))
        for _ in range(max_blocks):
            heads = self._head.run({"state": stream.state}, check_finite=True)
            index = int(sampler.choose(heads["mode_logits"][:1])[0])
            if index == len(self._modes):
                return
            mode = self._modes[index]
            stream.feed(self._embed, 1 + index, 0)
            shape: list[int] = []
            for largest in mode.max_shape:
                sizes = self._head.run({"state": stream.state}, check_finite=True)["size_logits"][:1, :largest]
                shape.append(1 + int(sampler.choose(sizes)[0]))
                stream.feed(self._embed, len(self._modes) + shape[-1], len(shape))
            tokens: list[int] = []
            for position in range(math.prod(shape)):
                logits = mode.head.run({"state": stream.state}, check_finite=True)["logits"][:1]
                tokens.append(int(sampler.choose(logits)[0]))
                stream.feed(mode.embed, tokens[-1], 1 + len(shape) + position)
            yield Block(mode=mode.name, shape=tuple(shape), tokens=tuple(tokens))

    def make_picture(self, block: Block) -> Picture:
        """A picture block's tokens as grey levels."""
        mode = self._find_mode(block.mode)
        levels = np.array(block.tokens, np.float32).reshape(block.shape) / max(1, mode.vocab_size - 1)
        return Picture(pixels=np.repeat(levels[:, :, None], 3, axis=2))

    def answer(self, request: Request) -> Answer:
        require(request, "a text to begin with", prompts=True)
        (text,) = [mode for mode in self._modes if mode.kind == "text"]
        rows, pictures = [], []
        for prompt in request.prompts:
            ids = tuple(self.tokenizer.encode(prompt))
            first = Block(mode=text.name, shape=(len(ids),), tokens=ids)
            made = self.generate([first], temperature=request.temperature, top_k=request.top_k, seed=request.seed)
            for number, block in enumerate(made, 1):
                if self._find_mode(block.mode).kind == "image":
                    pictures.append(self.make_picture(block))
                    shown = "a picture: -o FILE.png writes it"
                else:
                    shown = self.tokenizer.decode(block.tokens)
                rows.append((prompt, number, block.mode, block.shape, shown))
        header = ("prompt", "block", "mode", "shape", "content")
        return Answer(header=header, rows=tuple(rows), media=tuple(pictures))

    def _find_mode(self, name: str) -> _Mode:
        return next(mode for mode in self._modes if mode.name == name)

    def _check_block(self, block: Block) -> None:
        names = [mode.name for mode in self._modes]
        if block.mode not in names:
            raise InputError(
                f"there is no mode '{block.mode}'",
                allowed=", ".join(names),
                fix="name one of these modes",
            )
        mode = self._find_mode(block.mode)
        fits = len(block.shape) == len(mode.max_shape) and all(
            1 <= size <= largest for size, largest in zip(block.shape, mode.max_shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"a block of mode '{mode.name}' cannot have this shape",
                got=str(list(block.shape)),
                allowed=f"{len(mode.max_shape)} sizes from 1 to {', '.join(map(str, mode.max_shape))}",
                fix="shorten the text, or make the picture smaller",
            )
        if len(block.tokens) != math.prod(block.shape):
            raise InputError(
                "a block has one token for each place of its shape",
                got=f"{len(block.tokens)} tokens",
                allowed=str(math.prod(block.shape)),
                fix="give as many tokens as the product of its shape",
            )
        if not all(0 <= token < mode.vocab_size for token in block.tokens):
            raise InputError(
                f"a token is outside the vocabulary of mode '{mode.name}'",
                allowed=f"0..{mode.vocab_size - 1}",
                fix="encode the block with this bundle's own tokenizer",
            )

    def _embed_blocks(self, blocks: Sequence[Block]) -> Array:
        """The stream [1, T, C] up to here, the start first."""
        parts = [_embed(self._embed, [0], 0)]
        for block in blocks:
            index = [mode.name for mode in self._modes].index(block.mode)
            names = [1 + index, *(len(self._modes) + size for size in block.shape)]
            parts += [_embed(self._embed, names, 0), _embed(self._modes[index].embed, block.tokens, len(names))]
        return np.concatenate(parts, axis=1)


@final
class _Stream:
    """What was read so far: the cache, and the state behind the last element."""

    def __init__(self, owner: BlockGeneration, x_1TC: Array) -> None:
        self._owner = owner
        self._rows = max(get_batch_range(graph)[0] for graph in (owner._prefill, owner._decode, owner._head))
        self._length = x_1TC.shape[1]
        low, _ = get_axis_range(owner._prefill, "x", 1)
        padded = np.pad(x_1TC, ((0, 0), (0, max(0, low - self._length)), (0, 0)))
        self._results = owner._prefill.run(
            {"x": pad_rows(padded, self._rows), "lengths": np.full(self._rows, self._length, np.int64)}
        )

    @property
    def state(self) -> Array:
        """[B, C]."""
        return self._results["state"]

    def feed(self, embed: GraphSession, token: int, position: int) -> None:
        """Read one more element."""
        low, high = get_axis_range(self._owner._decode, "past_keys_0", 2)
        most = min(high or self._owner._max_cache, self._owner._max_cache)
        if self._length >= most:
            raise InputError(
                "the stream is longer than the cache", allowed=f"{most} elements", fix="ask for fewer blocks"
            )
        names, decode = self._owner._present, self._owner._decode
        past = fit_cache(self._results, names, decode, slots=self._length + 1, low=low, high=most)
        x = pad_rows(_embed(embed, [token], position), self._rows)
        lengths = np.full(self._rows, self._length, np.int64)
        self._results = decode.run({"x": x, "lengths": lengths, **past}, keep=choose_kept(names, decode))
        self._length += 1


def _embed(graph: GraphSession, ids: Sequence[int], first: int) -> Array:
    """Elements of one block from position `first` on, [1, T, C]."""
    low, high = get_axis_range(graph, "token_ids", 1)
    rows, parts = get_batch_range(graph)[0], []
    step = high or len(ids)
    for start in range(0, len(ids), step):
        part = np.array([list(ids[start : start + step])], np.int64)
        positions = np.arange(first + start, first + start + part.shape[1])[None]
        missing = ((0, 0), (0, max(0, low - part.shape[1])))
        feed = {"token_ids": np.pad(part, missing), "positions": np.pad(positions, missing)}
        x = graph.run({name: pad_rows(value, rows) for name, value in feed.items()})["x"]
        parts.append(x[:1, : part.shape[1]])
    return np.concatenate(parts, axis=1)
