"""Pictures without an imaging library, held against Pillow's own decoder and resizer."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from engines.runtime.media.image import load_image, resize_image
from engines.runtime.media.png import decode_png
from specs.errors import InputError

Image = pytest.importorskip("PIL.Image")


def make_pixels(height: int, width: int, samples: int, seed: int = 0) -> np.ndarray:
    """Smooth and noisy parts, so that an encoder picks different filters for different rows."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, height * width * samples).reshape(height, width, samples)
    noise = random.integers(0, 256, (height, width, samples))
    return np.where(np.arange(height)[:, None, None] % 3 == 0, noise, ramp).astype(np.uint8)


def write_png(
    rows: np.ndarray, *, width: int, depth: int, colour: int, extra: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG around `rows`: filter byte and coded bytes of every row."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, interlace)
    packed = zlib.compress(rows.tobytes())
    halves = chunk(b"IDAT", packed[:7]) + chunk(b"IDAT", packed[7:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + halves + chunk(b"IEND", b"")


def decode_with_pillow(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        pixels = np.asarray(picture.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@pytest.mark.parametrize(("samples", "mode", "colour"), [(1, "L", 0), (2, "LA", 4), (3, "RGB", 2), (4, "RGBA", 6)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (13, 5), (6, 17)])
def test_every_filter_decodes_as_in_pillow(samples: int, mode: str, colour: int, shape: tuple[int, int]) -> None:
    height, width = shape
    rows = np.random.default_rng(1).integers(0, 256, (height, 1 + width * samples), np.uint8)
    for first in range(5):
        rows[:, 0] = (np.arange(height) + first) % 5
        data = write_png(rows, width=width, depth=8, colour=colour)
        assert (decode_png(data) == decode_with_pillow(data, mode)).all()


@pytest.mark.parametrize(("samples", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_what_pillow_writes_is_read_back(samples: int, mode: str) -> None:
    pixels = make_pixels(40, 30, samples)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if samples == 1 else pixels, mode=None).save(stream, "PNG")
    assert (decode_png(stream.getvalue()) == pixels).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_and_palettes_of_few_bits(depth: int) -> None:
    width, height = 11, 5
    row_bytes = (width * depth + 7) // 8
    rows = np.random.default_rng(2).integers(0, 256, (height, 1 + row_bytes), np.uint8)
    rows[:, 0] = np.arange(height)
    grey = write_png(rows, width=width, depth=depth, colour=0)
    assert (decode_png(grey) == decode_with_pillow(grey, "L")).all()
    colours = np.random.default_rng(3).integers(0, 256, 3 << depth, np.uint8).tobytes()
    palette = struct.pack(">I", len(colours)) + b"PLTE" + colours + struct.pack(">I", zlib.crc32(b"PLTE" + colours))
    indexed = write_png(rows, width=width, depth=depth, colour=3, extra=palette)
    assert (decode_png(indexed) == decode_with_pillow(indexed, "RGB")).all()


def test_16_bits_keep_the_upper_8() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    rows = np.concatenate([np.zeros((3, 1), np.uint8), values.astype(">u2").view(np.uint8)], axis=1)
    assert (decode_png(write_png(rows, width=4, depth=16, colour=0))[:, :, 0] == values >> 8).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_of_a_file_keep_the_upper_8(suffix: str, tmp_path: Path) -> None:
    """Pillow writes PNG rows with filters, whose left neighbour is two bytes away; TIFF is read through Pillow."""
    values = (np.arange(24 * 20, dtype=np.uint16).reshape(24, 20) * 137) ^ 0x2A5
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    image = load_image(path, height=24, width=20, channels=1)[0, 0]
    assert (image == (values >> 8).astype(np.float32) / np.float32(255)).all()


@pytest.mark.parametrize(("kind", "samples"), [("P5", 1), ("P6", 3)])
def test_a_pnm_s_own_largest_value_is_white(kind: str, samples: int, tmp_path: Path) -> None:
    values = np.arange(16 * samples, dtype=np.uint8) % 16
    (tmp_path / "x.pnm").write_bytes(f"{kind} 4 4 15\n".encode() + values.tobytes())
    image = load_image(tmp_path / "x.pnm", height=4, width=4, channels=samples)[0]
    assert np.abs(image - values.reshape(4, 4, samples).transpose(2, 0, 1) / 15).max() < 1e-6


def test_a_damaged_png_is_a_value_error_wherever_it_is_cut_or_changed() -> None:
    rows = np.zeros((4, 13), np.uint8)
    data = write_png(rows, width=4, depth=8, colour=2)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="truncated|damaged"):
            decode_png(data[:end])
    for at in range(8, len(data)):
        with pytest.raises(ValueError, match="PNG"):
            decode_png(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"width": 1 << 30, "depth": 8, "colour": 2}, "claims 1073741824 x 4 pixels"),
        ({"width": 0, "depth": 8, "colour": 2}, "claims 0 x 4 pixels"),
        ({"width": 4, "depth": 3, "colour": 2}, "colour type 2 with 3 bits does not exist"),
        ({"width": 4, "depth": 8, "colour": 3}, "palette is missing or too short"),
        ({"width": 4, "depth": 8, "colour": 2, "interlace": 1}, "interlaced"),
        ({"width": 5, "depth": 8, "colour": 2}, "truncated"),
    ],
)
def test_a_png_that_is_not_decoded_says_why(options: dict[str, int], reason: str) -> None:
    rows = np.zeros((4, 13 if options["colour"] == 2 else 5), np.uint8)
    with pytest.raises(ValueError, match=reason):
        decode_png(write_png(rows, **options))  # type: ignore[arg-type]


def test_a_small_file_that_unpacks_to_much_is_not_unpacked() -> None:
    bomb = write_png(np.zeros((1, 50_000_000), np.uint8), width=4, depth=8, colour=0)
    tracemalloc.start()
    assert decode_png(bomb).shape == (1, 4, 1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    ("target", "source"), [((8, 8), (40, 30)), ((40, 30), (8, 8)), ((28, 28), (28, 28)), ((5, 50), (64, 7))]
)
def test_resize_is_pillows_bilinear(target: tuple[int, int], source: tuple[int, int]) -> None:
    pixels = np.random.default_rng(4).random(source, np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))
    resized = resize_image(pixels[:, :, None], height=target[0], width=target[1])[:, :, 0]
    assert np.abs(resized - expected).max() < 1e-5


def test_files_of_every_kind_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = make_pixels(6, 5, 3)
    for suffix in ("png", "ppm", "bmp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    np.save(tmp_path / "a.npy", pixels)
    expected = pixels.transpose(2, 0, 1)[None] / np.float32(255)
    for name in ("a.png", "a.ppm", "a.bmp", "a.npy"):
        image = load_image(tmp_path / name, height=6, width=5, channels=3)
        assert image.dtype == np.float32
        assert image.flags.c_contiguous
        assert np.abs(image - expected).max() < 1e-6


def test_channels_are_repeated_weighted_or_dropped() -> None:
    colour = make_pixels(4, 4, 4)
    grey = load_image(colour, height=4, width=4, channels=1)[0, 0]
    luma = np.asarray(Image.fromarray(colour[:, :, :3]).convert("L"))
    assert np.abs(grey * 255 - luma).max() <= 1
    repeated = load_image(colour[:, :, 0], height=4, width=4, channels=3)[0]
    assert (repeated == colour[:, :, 0] / np.float32(255)).all()
    without_alpha = load_image(colour, height=4, width=4, channels=3)[0]
    assert (without_alpha == colour[:, :, :3].transpose(2, 0, 1) / np.float32(255)).all()
    for channels in (1, 3):
        grey_of_alpha = load_image(colour[:, :, :2], height=4, width=4, channels=channels)[0]
        assert (grey_of_alpha == colour[:, :, 0] / np.float32(255)).all()


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.arange(64, dtype=np.float32).reshape(8, 8), "values are outside the range"),
        (np.full((8, 8), np.nan), "values are outside the range"),
        (np.ones((8, 8), np.int64), "values are outside the range"),
        (np.ones(8, np.uint8), "rank 2 or 3"),
        (np.ones((0, 8), np.uint8), "rank 2 or 3"),
        (np.ones((8, 8, 7), np.uint8), "wrong number of channels"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_image(array, height=8, width=8, channels=1 if "channels" not in problem else 3)


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_image(tmp_path / "nothing.png", height=4, width=4, channels=1)
    for name, data in {
        "text.png": b"hello",
        "empty.png": b"",
        "cut.png": b"\x89PNG\r\n\x1a\n",
        "cut.ppm": b"P6 4 4 255 ",
        "huge.ppm": b"P6 99999999 99999999 255 ",
        "cut.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9, 9), }".ljust(128),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_image(tmp_path / name, height=4, width=4, channels=1)
        assert caught.value.where == str(tmp_path / name)


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        load_image(tmp_path / "objects.npy", height=4, width=4, channels=1)


def test_without_pillow_other_kinds_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(make_pixels(8, 8, 3)).save(tmp_path / "a.jpg")
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(InputError) as caught:
        load_image(tmp_path / "a.jpg", height=4, width=4, channels=3)
    assert caught.value.problem == "the picture cannot be read without Pillow"
    assert caught.value.fix == "pip install pillow, or convert it"
