"""Films to what a vision graph takes: some frames, each a picture; or all of them as raw pixels.

    file, folder or array -> frames by number -> a uniform choice of them

A film is a .npy of frames, a folder of pictures, an animated PNG, GIF or WebP (these three by Pillow), or an array; a
picture is a film of one frame. Frames are told apart by number, not by how long each is shown. Video files (MP4 and
the like) are not decoded here.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.media.image import convert_with_pillow, load_pixels
from engines.runtime.media.png import SIGNATURE
from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_PICTURES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_ALLOWED = "an animated PNG, GIF or WebP, a folder of pictures, a .npy of frames [T, H, W, C], or a picture"
_NPY_MAGIC = b"\x93NUMPY"
_VIDEOS = {b"\x1aE\xdf\xa3": "a Matroska or WebM file", b"\x00\x00\x01\xba": "an MPEG file"}
_MOST_CHANNELS = 4
_HEAD_BYTES = 1 << 20  # an animated PNG says so before its first picture, and behind its colour profile
_DAMAGED = (OSError, EOFError, SyntaxError, ValueError, MemoryError, struct.error, IndexError)


class _Frames(ABC):
    """The frames of one film, read one at a time."""

    count: int

    @abstractmethod
    def read(self, indices: Sequence[int]) -> list[str | Path | Array]:
        """What `load_image` takes, for each of these frames; the indices rise."""


@final
class _ArrayFrames(_Frames):
    """[T, H, W, C] or [T, H, W], in memory or mapped."""

    def __init__(self, frames: Array) -> None:
        self.count, self._frames = len(frames), frames

    def read(self, indices: Sequence[int]) -> list[str | Path | Array]:
        return [np.array(self._frames[index]) for index in indices]


@final
class _PictureFrames(_Frames):
    """A file each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.count, self._paths = len(paths), paths

    def read(self, indices: Sequence[int]) -> list[str | Path | Array]:
        return [self._paths[index] for index in indices]


@final
class _AnimatedFrames(_Frames):
    """One file, by Pillow, which composes each frame from those before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._pillow: Any = importlib.import_module("PIL.Image")
        except ImportError:
            raise InputError(
                "the film cannot be read without Pillow",
                where=str(path),
                allowed="a folder of pictures, or a .npy of frames [T, H, W, C]",
                fix="pip install pillow, or convert it",
            ) from None
        with self._guard(), self._pillow.open(path) as film:
            self.count = int(getattr(film, "n_frames", 1))

    def read(self, indices: Sequence[int]) -> list[str | Path | Array]:
        found: dict[int, Array] = {}
        with self._guard(), self._pillow.open(self._path) as film:
            for index in sorted(set(indices)):
                film.seek(index)
                found[index] = convert_with_pillow(film)
        return [found[index] for index in indices]

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Pillow's errors as ours. What it warns of (sizes, which have our limit; metadata) changes no pixel."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (*_DAMAGED, self._pillow.DecompressionBombError) as error:
            said = str(error).replace(f" {str(self._path)!r}", "")
            raise _refuse(self._path, said or type(error).__name__) from None


def sample_film(source: str | Path | Array, *, num_frames: int) -> list[str | Path | Array]:
    """`num_frames` frames of a film, evenly from its first to its last, each what `load_image` takes.

    A film that has fewer shows some of them more than once.

    Args:
        source: a file, a folder, or an array [T, H, W, C] or [T, H, W] (a picture's: [H, W] or [H, W, C]).

    Raises:
        InputError: no film or picture, a damaged or an empty one.
    """
    frames = _open_frames(source)
    indices = [int(index) for index in np.linspace(0, frames.count - 1, num_frames)]
    return frames.read(indices)


def load_frames(source: str | Path | Array, *, channels: int, on_white: bool = False) -> Array:
    """All frames as they are, uint8 [frames, height, width, channels]: for graphs that sample and resize themselves.

    Raises:
        InputError: no film or picture, a damaged or an empty one, or frames of different sizes.
    """
    frames = _open_frames(source)
    pictures = [
        load_pixels(picture, channels=channels, on_white=on_white)[0] for picture in frames.read(range(frames.count))
    ]
    sizes = list(dict.fromkeys(picture.shape[:2] for picture in pictures))
    if len(sizes) > 1:
        raise InputError(
            "the frames have different sizes",
            where=_name(source),
            got=", ".join(f"{height} by {width}" for height, width in sizes[:4]),
            fix="make them one size",
        )
    return np.stack(pictures)


def is_film(source: str | Path | Array) -> bool:
    """Whether there is more to a source than one picture: a folder, an animation, or an array of frames."""
    if isinstance(source, np.ndarray):
        return _has_frames(source)
    path = Path(source)
    if path.exists() and not path.is_file():
        return path.is_dir()
    head = _read_head(path)
    return _is_animated(head) or (head.startswith(_NPY_MAGIC) and _has_frames(_map_array(path)))


def _open_frames(source: str | Path | Array) -> _Frames:
    """Raises InputError for a film without frames."""
    frames = _find_frames(source)
    if not frames.count:
        raise InputError(
            "the film has no frames",
            where=_name(source),
            got="0 frames",
            allowed="one or more",
            fix="hand over a film of one frame or more",
        )
    return frames


def _find_frames(source: str | Path | Array) -> _Frames:
    if isinstance(source, np.ndarray):
        return _ArrayFrames(source if _has_frames(source) else source[None])
    path = Path(source)
    if path.is_dir():
        return _PictureFrames(_list_pictures(path))
    if path.exists() and not path.is_file():
        return _PictureFrames([path])  # a pipe can be read once, and holds a picture
    head = _read_head(path)
    if head.startswith(_NPY_MAGIC):
        stored = _map_array(path)
        return _ArrayFrames(stored if _has_frames(stored) else stored[None])
    if _is_animated(head):
        return _AnimatedFrames(path)
    kind = next((kind for magic, kind in _VIDEOS.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or kind:
        raise InputError(
            "video files are not decoded here",
            where=str(path),
            got=kind or ("an AVI file" if head[:4] == b"RIFF" else "an MP4 or QuickTime file"),
            allowed=_ALLOWED,
            fix="take frames out of it: ffmpeg -i FILE FOLDER/%04d.png",
        )
    return _PictureFrames([path])


def _has_frames(stored: Array) -> bool:
    """[T, H, W, C], or [T, H, W] of grey frames: a picture's last axis are its channels, and those are few."""
    return stored.ndim == 4 or (stored.ndim == 3 and stored.shape[-1] > _MOST_CHANNELS)


def _is_animated(head: bytes) -> bool:
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(b"GIF8") or webp or (head.startswith(SIGNATURE) and b"acTL" in head.partition(b"IDAT")[0])


def _list_pictures(folder: Path) -> list[Path]:
    """In the order of the numbers in their names: frame 2 before frame 10."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES and not path.name.startswith(".")]
    if not found:
        raise InputError(
            "the folder holds no pictures",
            where=str(folder),
            got=", ".join(sorted(path.name for path in folder.iterdir()))[:160] or "an empty folder",
            allowed=", ".join(_PICTURES),
            fix="put the frames in it as pictures: ffmpeg -i FILE FOLDER/%04d.png",
        )
    return sorted(found, key=lambda path: _split_numbers(path.name))


def _split_numbers(name: str) -> list[tuple[int, str]]:
    """What names are sorted by: their numbers as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(
            "the film cannot be read",
            where=str(path),
            got=error.strerror,
            allowed=_ALLOWED,
            fix="check the path",
        ) from None
    if not head:
        raise _refuse(path, "an empty file")
    return head


def _map_array(path: Path) -> Array:
    try:
        stored: Array = np.lib.format.open_memmap(path, mode="r")
    except _DAMAGED as error:
        raise _refuse(path, str(error).split("\n")[0] or type(error).__name__) from None
    return stored


def _refuse(path: Path, got: str) -> InputError:
    return InputError(
        "this is no film, or it is damaged", where=str(path), got=got, allowed=_ALLOWED, fix="save it again"
    )


def _name(source: str | Path | Array) -> str:
    return "array" if isinstance(source, np.ndarray) else str(source)
