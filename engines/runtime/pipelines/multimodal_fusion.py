"""Any subset of a bundle's modalities in, labels with probabilities (or an embedding) out.

    what was handed over -> its encoders -> tokens;  zeros for the rest -> fusion(tokens, presence) -> logits

Rows of a batch may have different modalities. Encoders of what is missing do not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph, take_strings
from engines.runtime.media.heat_map import draw_heat_map
from engines.runtime.pipelines.base import Pipeline
from engines.runtime.pipelines.stages.batching import run_rows, softmax
from engines.runtime.pipelines.stages.modalities import Modality
from engines.runtime.request import Answer, Picture, Request
from specs.bundle import Manifest
from specs.errors import InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

#: One sample: a modality's name -> what was handed over for it. What is absent is missing.
Row = Mapping[str, Any]


@final
class MultimodalFusion(Pipeline):
    """An encoder a modality, and a fusion with `presence` [batch, modalities]."""

    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        config = manifest.pipeline
        listed: list[dict[str, Any]] = take_field(config, "modalities", list)
        self.modalities = {one["name"]: Modality(folder, manifest, one, graphs) for one in listed}
        tensors = [tensor.name for one in self.modalities.values() for tensor in one.outputs]
        self._fusion = take_graph(config, "fusion", graphs, inputs=(*tensors, "presence"))
        self._labels = take_strings(config, "labels")
        self._weights: list[dict[str, Any]] = take_field(config, "weights", list, [])

    @property
    def modality_names(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def fuse(self, rows: Sequence[Row]) -> dict[str, Array]:
        """Every output of the fusion, a row a sample.

        Args:
            rows: each a dict: modality -> a file, or what `Modality` takes instead of one.

        Raises:
            InputError: a row without anything, a modality that there is not, or one that is not what it should be.
        """
        if not rows:
            raise InputError(
                "there is nothing to fuse",
                allowed="1 row or more",
                fix="hand over one modality or more",
            )
        for row in rows:
            self._check(row)
        presence = np.array([[name in row for name in self.modalities] for row in rows])
        feed: dict[str, Array] = {"presence": presence}
        for column, (name, modality) in enumerate(self.modalities.items()):
            present = np.flatnonzero(presence[:, column]).tolist()
            found = modality.encode([rows[i][name] for i in present]) if len(present) else {}
            for tensor in modality.outputs:
                shape = [int(size) for size in tensor.shape[1:]]
                # lengths of what is missing must count at least one place
                whole = (np.ones if tensor.dtype == "int64" else np.zeros)((len(rows), *shape), tensor.dtype)
                if len(present):
                    whole[present] = found[tensor.name]
                feed[tensor.name] = whole
        return run_rows(self._fusion, feed)

    def classify(self, row: Row, *, top_k: int = 5) -> list[tuple[str, float]]:
        """The `top_k` likeliest (label, probability) of one sample, likeliest first."""
        return self._name_best(self.fuse([row]), top_k)

    def draw_weights(self, row: Row) -> dict[str, Picture]:
        """What each present modality looked at: output -> a heat map, the mean of the heads.

        Raises:
            InputError: the graph makes no weights.
        """
        if not self._weights:
            raise InputError(
                "this bundle's fusion makes no weights to draw",
                got=", ".join(tensor.name for tensor in self._fusion.graph.outputs),
                fix="set export_weights: true of the fusion, with a strategy that has weights, and export it again",
            )
        return self._draw(self.fuse([row]), row)

    def answer(self, request: Request) -> Answer:
        row = self._sort(request)
        outputs = self.fuse([row])
        media = tuple(self._draw(outputs, row).values())
        if "logits" in outputs:
            best = self._name_best(outputs, request.top_k)
            rows = tuple((label, round(probability, 6)) for label, probability in best)
            return Answer(header=("label", "probability"), rows=rows, arrays=outputs, media=media)
        embedding = outputs["embedding"]
        described = (" + ".join(row), embedding.shape[1], round(float(np.linalg.norm(embedding)), 6))
        return Answer(header=("modalities", "width", "length"), rows=(described,), arrays=outputs, media=media)

    def _check(self, row: Row) -> None:
        for name in row:
            if name not in self.modalities:
                raise InputError(
                    f"this bundle has no modality '{name}'",
                    allowed=name_nearest(name, self.modalities),
                    fix="use one of these",
                )
        if not row:
            raise InputError(
                "nothing was handed over",
                allowed=f"one or more of {', '.join(one.words for one in self.modalities.values())}",
                fix="metagen-deploy run BUNDLE [FILE ...] [--input MODALITY=FILE ...] [--prompt TEXT]",
            )

    def _sort(self, request: Request) -> dict[str, Any]:
        """Which modality each file and the prompt is for: as the user said, else by the file's ending."""
        row: dict[str, Any] = {}
        texts = [name for name, one in self.modalities.items() if one.reads == "text"]
        asked = [(name, file) for name, file in request.named]
        asked += [(self._guess(file, self._list_readers(file)), file) for file in request.files]
        asked += [(self._guess(f"--prompt {prompt!r}", texts), prompt) for prompt in request.prompts]
        for name, source in asked:
            if name in row:
                raise InputError(
                    f"two things are handed over for '{name}'", got=f"{row[name]}, {source}", fix="leave one away"
                )
            row[name] = source
        return row

    def _list_readers(self, file: str) -> list[str]:
        ending = Path(file).suffix.lower()
        claimed = [name for name, one in self.modalities.items() if ending in one.endings]
        if claimed or ending in (".wav", ".csv", ".txt"):
            return claimed
        pictures = [name for name, one in self.modalities.items() if one.reads in ("image", "pixels")]
        return pictures or [name for name, one in self.modalities.items() if one.reads == "film"]

    def _guess(self, what: str, able: Sequence[str]) -> str:
        fitting = [name for name in able if len(able) == 1 or self.modalities[name].takes(what)]
        if len(fitting) == 1:
            return fitting[0]
        raise InputError(
            f"no modality of this bundle takes {what}" if not able else f"several modalities could take {what}",
            allowed=", ".join(self.modalities[name].words for name in able or self.modalities),
            fix="hand over something else" if not able else f"say which: --input {able[0]}=FILE",
        )

    def _name_best(self, outputs: Mapping[str, Array], top_k: int) -> list[tuple[str, float]]:
        if "logits" not in outputs:
            raise InputError("this bundle ends in an embedding, not in classes", fix="call fuse(rows)['embedding']")
        if top_k < 1:
            raise InputError(
                "nothing to name",
                got=f"top_k {top_k}",
                allowed="1 or more",
                fix="ask for one class or more",
            )
        shares = softmax(outputs["logits"])[0]
        order = np.argsort(-shares, kind="stable")[:top_k]
        return [(self._labels[c] if c < len(self._labels) else str(c), float(shares[c])) for c in order]

    def _draw(self, outputs: Mapping[str, Array], row: Row) -> dict[str, Picture]:
        """Heat maps of the first sample; of tensors that belong to one modality, those of present ones."""
        drawn = {}
        for one in self._weights:
            rows = [(str(name), int(count)) for name, count in one["rows"]]
            columns = [(str(name), int(count)) for name, count in one["columns"]]
            owner = rows[0][0] if len(rows) == 1 else None
            if owner in self.modalities and owner not in row:
                continue
            weights = outputs[one["name"]][0]
            table = weights.mean(axis=0) if weights.ndim == 3 else np.atleast_2d(weights)
            drawn[one["name"]] = draw_heat_map(table, rows=rows, columns=columns, title=one["name"])
        return drawn
