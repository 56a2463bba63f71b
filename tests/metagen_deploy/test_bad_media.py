"""Pictures, sounds and arrays that are broken, of the wrong kind, or claim more than they hold: an InputError each.

Every case is read in full by what `run` reads it with, and either gives finite values of the asked shape or is refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.runtime.media.image import load_image
from engines.runtime.media.picture_steps import apply_steps
from engines.runtime.media.sound import load_sound
from specs.arrays import UnreadableArrayError, list_npz, read_npy, read_npz
from specs.errors import InputError
from tests.refusals import refuse
from tests.small_bundles import make_decoder_weights, write_classifier, write_decoder

Capture = pytest.CaptureFixture[str]

STEPS = (
    None,
    {"resize": "stretch", "size": [8, 8], "resample": "bicubic"},
    {"resize": "shortest_edge", "size": 8, "crop": [8, 8], "resample": "bilinear"},
)
HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 3)}}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4.0, 4)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': ('<f4', (100000, 100000)), 'fortran_order': False, 'shape': (4,)}",
    "{'descr': 3, 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '<f4'}",
    "__import__('os').system('touch pwned')",
    "{" * 5000,
)


def read_or_refuse(source: str | Path | np.ndarray) -> bool:
    """Whether it is a picture; every way of reading it must agree on a sound array or an InputError."""
    read = []
    for steps in STEPS:
        for channels in (1, 3):
            try:
                pixels = load_image(source, height=8, width=8, channels=channels, steps=steps)
            except InputError:
                read.append(False)
            else:
                assert pixels.shape == (1, channels, 8, 8)
                assert pixels.min() >= 0 and pixels.max() <= 1
                read.append(True)
    return any(read)


@pytest.mark.parametrize("kind", "? b B h H i I l L e d f g F D S3 U3 M8[s] m8[s]".split())
def test_arrays_of_every_type_and_rank(kind: str, tmp_path: Path) -> None:
    for shape in [(), (0,), (4,), (4, 4), (0, 4), (4, 4, 1), (4, 4, 2), (4, 4, 4), (4, 4, 5), (4, 4, 0), (1, 4, 4, 3)]:
        array = np.zeros(shape, kind)
        np.save(tmp_path / "x.npy", array)
        is_picture = kind in "Bedfg" and shape in [(4, 4), (4, 4, 1), (4, 4, 2), (4, 4, 4)]
        assert read_or_refuse(array) == read_or_refuse(tmp_path / "x.npy") == is_picture, (kind, shape)
        assert read_npy(tmp_path / "x.npy").dtype == array.dtype
        try:
            load_sound(array, sample_rate=16000)
        except InputError:
            continue
        assert array.dtype.kind == "f" and array.size and array.ndim <= 2


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_array_headers_that_lie(header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = header.encode() + b"\n"
    for start in (
        b"\x01\x00" + struct.pack("<H", len(text)),
        b"\x02\x00" + struct.pack("<I", len(text)),
        b"\x03\x00" + struct.pack("<I", len(text)),
        b"\x02\x00" + struct.pack("<I", 2**32 - 1),
        b"\x09\x00" + struct.pack("<I", len(text)),
    ):
        data = b"\x93NUMPY" + start + text + bytes(64)
        Path("x.npy").write_bytes(data)
        assert not read_or_refuse("x.npy")
        with pytest.raises(UnreadableArrayError):
            read_npy("x.npy")
        with zipfile.ZipFile("x.npz", "w") as archive:
            archive.writestr("x.npy", data)
        with pytest.raises(UnreadableArrayError):
            read_npz("x.npz")
    assert not Path("pwned").exists()


def test_archives_are_read_by_name_and_bounded(tmp_path: Path) -> None:
    """A member that nobody asks for is not read; one of more bytes than the machine has memory is refused unread."""
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones(3), b=np.array([{}], object))
    assert list_npz(path) == ("a", "b")
    assert read_npz(path, {"a"})["a"].tolist() == [1, 1, 1]
    with pytest.raises(UnreadableArrayError, match="Object arrays cannot be loaded"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("huge.npy", b"x" * 100)
    damaged = path.read_bytes().replace(struct.pack("<II", 100, 100), struct.pack("<II", 100, 2**32 - 2))
    path.write_bytes(damaged)
    with pytest.raises(UnreadableArrayError):
        read_npz(path)
    with pytest.raises(UnreadableArrayError, match="it is a folder"):
        read_npy(tmp_path)
    with pytest.raises(UnreadableArrayError, match="it is no regular file"):
        read_npz("/dev/null")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_picture_too_long_and_thin_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    """224 by 13 million pixels would take 17 GB."""
    steps = {"resize": "shortest_edge", "size": 224, "crop": [224, 224], "resample": "bicubic"}
    with pytest.raises(InputError, match="too long and thin"):
        apply_steps(np.zeros((*size, 3), np.uint8), steps)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico"])
def test_damaged_pictures(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(stream, kind)
    intact, path = stream.getvalue(), tmp_path / f"p.{kind}"
    path.write_bytes(intact)
    assert read_or_refuse(path)
    for _ in range(12):
        damaged = bytearray(intact)
        for place in random.integers(0, len(intact), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        read_or_refuse(path)
        path.write_bytes(intact[: random.integers(0, len(intact))])
        read_or_refuse(path)


# --- sounds ----------------------------------------------------------------------------------------------------------


def make_wav(kind: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, body: bytes | None = None) -> bytes:
    body = bytes(100 * channels * max(1, bits // 8)) if body is None else body
    layout = struct.pack("<HHIIHH", kind, channels, rate, 0, 0, bits)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def hear_or_refuse(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    try:
        samples = load_sound(path, sample_rate=16000)
    except InputError:
        return False
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
    return True


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 6, 7, 17, 85, 0xFFFE, 65535])
def test_wavs_of_every_format(kind: int, tmp_path: Path) -> None:
    read = {(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)}
    for bits in (0, 1, 4, 8, 12, 16, 20, 24, 32, 64, 128):
        for channels in (0, 1, 2, 255):
            for rate in (0, 999, 8000, 16000, 44100, 0xFFFFFFFF):
                heard = hear_or_refuse(make_wav(kind, channels, rate, bits), tmp_path / "s.wav")
                assert heard == ((kind, bits) in read and channels > 0 and 1000 <= rate < 768_001)


def test_damaged_wavs(tmp_path: Path) -> None:
    intact = make_wav()
    for end in range(60):
        assert not hear_or_refuse(intact[:end], tmp_path / "s.wav")
    for place in range(44):
        for value in (0, 1, 0x7F, 0xFF):
            hear_or_refuse(intact[:place] + bytes([value]) + intact[place + 1 :], tmp_path / "s.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e300, -1e308])
def test_samples_that_are_no_numbers_of_a_sound(value: float, tmp_path: Path) -> None:
    body = np.full(64, value, "<f8").tobytes()
    assert not hear_or_refuse(make_wav(3, 2, 8000, 64, body), tmp_path / "s.wav")


@pytest.mark.parametrize("path", ["", "gone", "x\0y", "a" * 5000, "/"])
def test_names_that_are_no_files(path: str) -> None:
    with pytest.raises(InputError, match="the sound cannot be read"):
        load_sound(path, sample_rate=16000)
    with pytest.raises(InputError, match="the picture cannot be read"):
        load_image(path, height=8, width=8, channels=3)
    with pytest.raises(UnreadableArrayError):
        read_npz(path)


# --- through the command line ----------------------------------------------------------------------------------------


def write_png(path: Path, *, width: int = 8, height: int = 8, end: int | None = None) -> None:
    """A grey picture that claims a size; cut after `end` bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(72))), chunk(b"IEND", b""))
    path.write_bytes((b"\x89PNG\r\n\x1a\n" + b"".join(parts))[:end])


def write_truncated_jpeg(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:-300])


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no picture": (lambda path: path.write_text("hello"), "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "empty": (lambda path: path.touch(), "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "truncated PNG": (lambda path: write_png(path, end=50), "the PNG is truncated or damaged"),
    "truncated JPEG": (write_truncated_jpeg, "it is no PNG, PPM, PGM or .npy; Pillow: {...}"),
    "bomb": (
        lambda path: write_png(path, width=100_000, height=100_000),
        "the PNG claims 100000 x 100000 pixels, at most 134217728 are decoded",
    ),
    "smaller than it claims": (
        lambda path: write_png(path, width=11_000, height=11_000),
        "the PNG is truncated",
    ),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    write, got = PICTURES[case]
    write(tmp_path / "p.png")
    refuse(
        ["run", "c.bundle", "p.png"],
        "this is no picture, or it is damaged\n"
        "  where:   p.png\n"
        f"  got:     {got}\n"
        "  allowed: a picture that opens in a viewer\n"
        "  fix:     save it again, as PNG for example",
        capsys,
    )


def test_a_graph_that_a_picture_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    write_png(tmp_path / "p.png")
    message = "this bundle has no graph 'nope'\n  allowed: classifier\n  fix:     add --graph NAME"
    refuse(["run", "c.bundle", "p.png", "--graph", "nope"], message, capsys)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "a prompt is empty\n  allowed: one token or more\n  fix:     start it with any text"),
        (
            "x" * 100,
            (
                "the prompt and the new tokens do not fit the cache\n"
                "  got:     100 + 1 tokens\n"
                "  allowed: 97 together\n"
                "  fix:     shorten the prompt, or export with a larger `cache`"
            ),
        ),
    ],
)
def test_prompts(prompt: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_decoder(tmp_path / "d.bundle", make_decoder_weights())
    refuse(["run", "d.bundle", "--prompt", prompt], message, capsys)


def test_golden_data_that_lacks_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "c.bundle")
    message = (
        "the golden data of graph 'classifier' lacks input:image, output:logits\n"
        "  where:   c.bundle/part/classifier.golden.npz\n"
        "  fix:     export the bundle again"
    )
    refuse(["bench", "c.bundle"], message, capsys)
    refuse(["check", "c.bundle"], message, capsys)
