"""A graph that looks at one picture a row: how pictures become its input, and any number of them through it.

    image   a host resizes the picture                        float32 [rows, channels, height, width] in [0, 1]
    pixels  the graph resizes it; pictures of one size share a call   uint8 [rows, height, width, channels]

Which of them a graph takes, its own input says; the size and the steps are the manifest's `pipeline.image`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_field, take_graph
from engines.runtime.media.image import load_image, load_pixels
from engines.runtime.media.picture_steps import LONGEST_SIDE, check_steps
from engines.runtime.pipelines.stages.batching import get_batch_range, run_rows
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

    Picture = str | Path | Array

RAW = "pixels"


@final
class PictureGraph:
    """The graph that `config[key]` names, and `config["image"]`: how pictures are made to fit it."""

    def __init__(
        self,
        config: Mapping[str, Any],
        key: str,
        graphs: Mapping[str, GraphSession],
        *,
        outputs: Sequence[str] = (),
    ) -> None:
        named = graphs.get(str(config.get(key)))
        self.source = RAW if named is not None and takes_pixels(named) else "image"
        self.graph = take_graph(config, key, graphs, inputs=(self.source,), outputs=outputs)
        self._size = take_image_size(config)

    def run(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        """Every output, a row a picture, in as few calls as the graph's batch range and the pictures' sizes allow.

        No more pictures are in memory than one call takes.

        Raises:
            InputError: a picture cannot be read, or is larger than the graph takes.
        """
        high = get_batch_range(self.graph)[1]
        step = len(pictures) if high is None else high
        return _join([self._run_some(pictures[start : start + step]) for start in range(0, len(pictures), step)])

    def _run_some(self, pictures: Sequence[Picture]) -> dict[str, Array]:
        rows = [self._load(picture) for picture in pictures]
        return run_groups(self.graph, [{self.source: row} for row in rows])

    def _load(self, picture: Picture) -> Array:
        is_raw = self.source == RAW
        loaded = load_raw(picture, self.graph, self._size) if is_raw else load_image(picture, **self._size)
        row: Array = loaded[0]
        return row


def takes_pixels(graph: GraphSession) -> bool:
    """Whether a graph resizes pictures itself."""
    return any(tensor.name == RAW for tensor in graph.graph.inputs)


def load_raw(picture: Picture, graph: GraphSession, size: Mapping[str, Any]) -> Array:
    """A picture as it is, uint8 [1, height, width, channels], where `graph` takes one of its size.

    Args:
        size: `take_image_size` of its pipeline. Where it has steps, what is transparent is white, as a host's is.
    """
    pixels = load_pixels(picture, channels=size["channels"], on_white="steps" in size)
    check_picture_size(pixels.shape[1:3], graph, where="array" if isinstance(picture, np.ndarray) else str(picture))
    return pixels


def check_picture_size(sides: Sequence[int], graph: GraphSession, *, where: str) -> None:
    """Raises InputError where a raw picture's height and width, or a film's, are not what `graph` takes."""
    tensor = next(tensor for tensor in graph.graph.inputs if tensor.dtype == "uint8")
    allowed, wider = [], []
    for name, side, wanted in zip(("height", "width"), sides, tensor.shape[-3:-1], strict=True):
        low, usual, high = graph.dims.get(wanted, (1, side, side)) if isinstance(wanted, str) else (wanted,) * 3
        allowed.append(f"{name} {low} to {high}" if low < high else f"{name} {low}")
        if not low <= side <= high and isinstance(wanted, str):
            wider.append(f"--dim {wanted}={min(low, side)}:{usual}:{max(high, side)}")
        elif not low <= side <= high:
            wider.append("")
    if wider:
        raise InputError(
            "the picture has a size that the graph does not take",
            where=where,
            got=f"height {sides[0]}, width {sides[1]}",
            allowed=", ".join(allowed),
            fix="resize it" + (f", or export with {' '.join(wider)}" if all(wider) else ""),
        )


def run_groups(graph: GraphSession, rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Rows (without the batch axis) of any shapes: those of one shape run together. Outputs in the order of `rows`."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(tuple(value.shape for value in row.values()), []).append(index)
    found = [
        run_rows(graph, {name: np.stack([rows[i][name] for i in members]) for name in rows[0]})
        for members in groups.values()
    ]
    order = np.argsort([index for members in groups.values() for index in members])
    return {name: value[order] for name, value in _join(found).items()}


def _join(blocks: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def take_image_size(config: Mapping[str, object]) -> dict[str, Any]:
    """`pipeline.image` as the keywords of `load_image`."""
    image: dict[str, object] = take_field(config, "image", dict)
    size: dict[str, Any] = {
        key: take_field(image, key, int, at="pipeline.image", most=LONGEST_SIDE)
        for key in ("height", "width", "channels")
    }
    if "steps" in image:
        size["steps"] = take_field(image, "steps", dict, at="pipeline.image")
        check_steps(size["steps"])
    return size
