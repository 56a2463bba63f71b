"""Sounds in, transcripts out, by one encoder that spells: wav2vec 2.0 and connectionist temporal classification.

    encoder(samples [B, L], lengths [B]) -> logits [B, T, V]
    the likeliest label of each frame --merge repeats, drop blanks--> text

A sound that is longer than the graph takes is cut into consecutive pieces, each transcribed by itself: a word that lies
across a border may be spelled wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from engines.runtime.fields import take_field, take_graph, take_strings
from engines.runtime.media.sound import load_sound
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows
from engines.runtime.pipelines.stages.caches import get_axis_range
from engines.runtime.request import Answer, Request, require
from specs.bundle import Manifest
from specs.errors import BundleError, InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession


@final
class SpeechCtc(Pipeline):
    """One graph. Models that were trained to see padding get each piece alone, and so without any."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        self._graph = take_graph(config, "graph", graphs, inputs=("samples", "lengths"), outputs=("logits",))
        self.sample_rate = take_field(config, "sample_rate", int)
        self._labels = take_strings(config, "labels")
        words = self._graph.graph.outputs[0].shape[-1]
        if self._labels and len(self._labels) != words:
            raise BundleError(
                "manifest: pipeline.labels are not as many as the graph's logits",
                got=str(len(self._labels)),
                allowed=str(words),
                fix="export the bundle again",
            )
        last = words - 1 if isinstance(words, int) else 0
        self._blank = take_field(config, "blank_token", int, 0, least=0, most=last)
        self._delimiter = take_field(config, "word_delimiter", str, "|")
        self._lower_case = take_field(config, "lower_case", bool, False)
        self._mask_padding = take_field(config, "mask_padding", bool, False)
        self._smallest = take_field(config, "frame_samples", int)
        self._stride = take_field(config, "frame_stride", int)

    def answer(self, request: Request) -> Answer:
        require(request, "sounds", files=True)
        texts = self.transcribe(request.files)
        return Answer(header=("sound", "transcript"), rows=tuple(zip(request.files, texts, strict=True)))

    def transcribe(self, sounds: Sequence[str | Path | Array]) -> list[str]:
        """What is said in each sound: .wav files of any rate, or samples at `sample_rate`; see `load_sound`.

        Raises:
            InputError: no sound, or one that cannot be read.
        """
        if not sounds:
            raise InputError(
                "there is nothing to transcribe",
                allowed="one sound or more",
                fix="hand over a sound",
            )
        _, high = get_axis_range(self._graph, "samples", 1)
        texts = []
        for sound in sounds:
            samples = load_sound(sound, sample_rate=self.sample_rate)
            step = high or len(samples)
            pieces = [samples[start : start + step] for start in range(0, len(samples), step)]
            spelled = (self.spell(logits.argmax(axis=-1)) for logits in self.compute_logits(pieces))
            texts.append(" ".join(filter(None, spelled)))
        return texts

    def compute_logits(self, pieces: Sequence[Array]) -> list[Array]:
        """Logits [T, V] of each piece [L], for the frames that see its own samples."""
        if self._mask_padding and len(pieces) > 1:
            return self._run(pieces)
        return [self._run([piece])[0] for piece in pieces]

    def spell(self, tokens: Sequence[int] | Array) -> str:
        """Labels of frames -> text; bare ids where the bundle has no labels."""
        letters = [self._labels[int(token)] if self._labels else str(token) for token in tokens]
        blank = self._labels[self._blank] if self._labels else str(self._blank)
        merged = [letter for place, letter in enumerate(letters) if place == 0 or letter != letters[place - 1]]
        said = [letter for letter in merged if letter != blank]
        if not self._labels:
            return " ".join(said)
        text = "".join(" " if letter == self._delimiter else letter for letter in said).strip()
        return text.lower() if self._lower_case else text

    def _run(self, pieces: Sequence[Array]) -> list[Array]:
        low, _ = get_axis_range(self._graph, "samples", 1)
        lengths = np.array([max(len(piece), self._smallest) for piece in pieces], np.int64)
        samples = np.zeros((len(pieces), max(low, int(lengths.max()))), np.float32)
        for row, piece in zip(samples, pieces, strict=True):
            row[: len(piece)] = piece
        logits = run_rows(self._graph, {"samples": samples, "lengths": lengths})["logits"]
        return [
            row[: (length - self._smallest) // self._stride + 1] for row, length in zip(logits, lengths, strict=True)
        ]
