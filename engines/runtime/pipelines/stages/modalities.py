"""What a user hands over for one modality -> what its encoder reads -> tokens for a fusion.

A modality `reads` one of:

    image    a picture, resized here                         pixels   a picture as it is: the graph resizes it
    text     a string                                        sound    a .wav or samples, with silence behind them
    film     a film as it is: the graph samples and resizes  values   an array (or .npy, .csv), or several by name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.array_files import load_archive, load_array, load_table
from engines.runtime.fields import take_field
from engines.runtime.media.film import load_frames
from engines.runtime.media.image import load_image
from engines.runtime.media.sound import load_chunk, load_sound
from engines.runtime.pipelines.stages.pictures import check_picture_size, load_raw, run_groups, take_image_size
from engines.runtime.text.context import ContextTokenizer
from specs.bundle import IoTensor, Manifest
from specs.errors import BundleError, InputError, name_nearest

if TYPE_CHECKING:
    from engines.runtime.arrays import Array
    from engines.runtime.graph_session import GraphSession

#: What a modality that `reads` something takes, in words, and the endings of files that are meant for it.
_WORDS = {
    "image": ("a picture", ()),
    "pixels": ("a picture", ()),
    "film": ("a film, or a folder of pictures", (".gif",)),
    "text": ("a text", (".txt",)),
    "sound": ("a .wav", (".wav",)),
    "values": ("a .npy or .csv", (".npy", ".csv", ".npz")),
}


@final
class Modality:
    """One encoder of a bundle, by the name that the spec gave it."""

    def __init__(
        self, folder: Path, manifest: Manifest, config: Mapping[str, Any], graphs: Mapping[str, GraphSession]
    ) -> None:
        self.name: str = take_field(config, "name", str, at="pipeline.modalities")
        self.reads: str = take_field(config, "reads", str, at="pipeline.modalities")
        if self.reads not in _WORDS or self.name not in graphs:
            raise BundleError(
                f"manifest: modality '{self.name}' has no graph, or reads what is not known here",
                got=self.reads,
                allowed=", ".join(_WORDS),
                fix="export the bundle again, or upgrade metagen-deploy",
            )
        self.has_lengths = bool(config.get("has_lengths"))
        self._graph, self._config = graphs[self.name], config
        self._context = None
        if self.reads == "text":
            self._context = ContextTokenizer(
                folder, manifest, take_field(config, "tokenizer", dict, at="pipeline.modalities")
            )

    @property
    def words(self) -> str:
        """`camera (a picture)`."""
        return f"{self.name} ({_WORDS[self.reads][0]})"

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the files that are meant for it; of pictures and films, also any that nothing else claims."""
        return _WORDS[self.reads][1]

    @property
    def outputs(self) -> tuple[IoTensor, ...]:
        """Tokens, and lengths where they vary."""
        return self._graph.graph.outputs

    def encode(self, sources: Sequence[Any]) -> dict[str, Array]:
        """Tokens (and lengths) of one sample a row, in the order of `sources`.

        Raises:
            InputError: a source is not what this modality reads; its `where` names the modality.
        """
        try:
            rows = [self._load(source) for source in sources]
        except InputError as error:
            where = f"modality '{self.name}'" + (f", {error.where}" if error.where else "")
            raise InputError(error.problem, where=where, got=error.got, allowed=error.allowed, fix=error.fix) from None
        return run_groups(self._graph, self._pad(rows))

    def takes(self, source: Any) -> bool:
        """Whether `source` is what it reads: of several sensors, often one alone has rows of this many values."""
        try:
            self._load(source)
        except InputError:
            return False
        return True

    def _load(self, source: Any) -> dict[str, Array]:
        """Arrays of one row, without the batch."""
        if self.reads == "text":
            assert self._context is not None
            ids, count = self._context.encode_counted(_read_text(source))
            return {"token_ids": ids, **self._count(count)}
        if self.reads == "image":
            return {"image": load_image(source, **take_image_size(self._config))[0]}
        if self.reads == "pixels":
            return {"pixels": load_raw(source, self._graph, take_image_size(self._config))[0]}
        if self.reads == "film":
            size = take_image_size(self._config)
            frames = load_frames(source, channels=size["channels"], on_white="steps" in size)
            check_picture_size(frames.shape[1:3], self._graph, where=_name_source(source))
            return {"frames": frames}
        if self.reads == "sound":
            sizes = {key: take_field(self._config, key, int) for key in ("sample_rate", "num_samples")}
            samples = load_sound(source, sample_rate=sizes["sample_rate"])
            return {"samples": load_chunk(samples, **sizes), **self._count(len(samples))}
        return self._load_values(source)

    def _count(self, valid: int) -> dict[str, Array]:
        """How much of a row is its own, for encoders that ask; of nothing, the first place."""
        asked = any(tensor.name == "lengths" for tensor in self._graph.graph.inputs)
        return {"lengths": np.array(max(1, valid), np.int64)} if asked else {}

    def _load_values(self, source: Any) -> dict[str, Array]:
        counted: Mapping[str, str] = self._config.get("counted", {})
        wanted = [tensor for tensor in self._graph.graph.inputs if tensor.name not in counted]
        given = _read_values(source, [tensor.name for tensor in wanted])
        row = {tensor.name: _fit(tensor, given[tensor.name]) for tensor in wanted}
        for name, dim in counted.items():
            first = next(tensor for tensor in wanted if dim in tensor.shape)
            row[name] = np.array(row[first.name].shape[first.shape.index(dim) - 1], np.int64)
        return row

    def _pad(self, rows: Sequence[dict[str, Array]]) -> list[dict[str, Array]]:
        """Along dims whose valid places are counted, every row as long as the longest, and as the graph needs."""
        counted = set(self._config.get("counted", {}).values())
        padded = [dict(row) for row in rows]
        for tensor in self._graph.graph.inputs:
            for axis, dim in enumerate(tensor.shape[1:]):
                if dim not in counted:
                    continue
                least = self._graph.dims.get(str(dim), (1, 1, 1))[0]
                longest = max(least, *(row[tensor.name].shape[axis] for row in padded))
                for row in padded:
                    missing = [(0, 0)] * row[tensor.name].ndim
                    missing[axis] = (0, longest - row[tensor.name].shape[axis])
                    row[tensor.name] = np.pad(row[tensor.name], missing)
        return padded


def _name_source(source: Any) -> str:
    return "array" if isinstance(source, np.ndarray) else str(source)


def _read_text(source: Any) -> str:
    if isinstance(source, Path) or (isinstance(source, str) and source.lower().endswith(".txt")):
        try:
            return Path(source).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or str(error)
            raise InputError(
                "the text cannot be read",
                where=str(source),
                got=got,
                allowed="UTF-8",
                fix="check the path, and save it as UTF-8",
            ) from None
    if not isinstance(source, str):
        raise InputError(
            "this is no text",
            got=type(source).__name__,
            allowed="a string, or a .txt",
            fix="hand over the text itself, or the path of a .txt",
        )
    return source


def _read_values(source: Any, names: Sequence[str]) -> dict[str, Array]:
    """The arrays of one sample by name; a single array is the first input's."""
    if isinstance(source, (str, Path)):
        file = str(source)
        if not file.lower().endswith((".npy", ".csv", ".npz")):
            raise InputError(
                "this kind of file holds no values",
                where=file,
                allowed=".npy, .csv, .npz",
                fix="write the values with numpy.save or numpy.savez, or as columns of a .csv",
            )
        if file.lower().endswith(".npz"):
            source = load_archive(file, names)
        else:
            source = load_table(file) if file.lower().endswith(".csv") else load_array(file)
    given = dict(source) if isinstance(source, Mapping) else {names[0]: np.asarray(source)}
    for name in names:
        if name not in given:
            raise InputError(
                f"the input '{name}' is missing",
                got=", ".join(given) or "nothing",
                allowed=", ".join(names),
                fix="hand over a dict of arrays, or an .npz with these names",
            )
    for name in given:
        if name not in names:
            raise InputError(f"there is no input '{name}'", allowed=name_nearest(name, names), fix="remove it")
    return given


def _fit(tensor: IoTensor, value: Any) -> Array:
    """One sample as the graph's type; a batch of one loses its axis.

    Raises:
        InputError: another rank or size, NaN, or values that the type does not hold.
    """
    array, rank = np.asarray(value), len(tensor.shape) - 1
    if array.ndim == rank + 1 and len(array) == 1:
        array = array[0]
    fits = array.ndim == rank and array.size > 0
    fits = fits and all(
        not isinstance(want, int) or want == have for want, have in zip(tensor.shape[1:], array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        raise InputError(
            f"this is no '{tensor.name}'",
            got=f"{array.dtype} {list(array.shape)}",
            allowed=f"{tensor.dtype} [{', '.join(map(str, tensor.shape[1:]))}]",
            fix="reshape it; one sample has no batch",
        )
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(
            f"'{tensor.name}' holds NaN or infinity", got=f"{count} of {array.size} values", fix="remove these places"
        )
    wanted = np.dtype(tensor.dtype)
    if wanted.kind != "f" and not np.array_equal(array.astype(wanted), array):
        raise InputError(
            f"'{tensor.name}' holds values that {tensor.dtype} does not",
            got=f"{array.dtype} from {array.min()} to {array.max()}",
            allowed=tensor.dtype,
            fix="round it, or bring it into the range of this type",
        )
    return np.ascontiguousarray(array.astype(wanted))
