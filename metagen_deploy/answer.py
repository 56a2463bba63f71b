"""`run`: what a user hands over, through the bundle's own pipeline, to the terminal and to a file.

A continuation of one prompt is printed as it comes; everything else is a table. What ran, and on which backend, is said
on stderr. `engines.runtime` does the work.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from engines.runtime import Answer, Request, Session, answer, load
from engines.runtime.media.encode import SUFFIXES, encode_medium, import_gif_writer
from engines.runtime.request import Medium
from metagen_deploy.terminal.tables import print_table
from specs.bundle.files import read_manifest, verify_files
from specs.errors import InputError, OutputError, name_nearest
from specs.system.disk import translate_os_errors

_TENSOR_SUFFIXES = (".npy", ".npz")
_MEDIA_SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in SUFFIXES.values() for suffix in suffixes))
_ANSWER_SUFFIXES = (".npz", ".json", ".txt", *_MEDIA_SUFFIXES)


def answer_request(
    bundle: Path,
    *,
    files: tuple[str, ...],
    inputs: Mapping[str, str],
    prompts: tuple[str, ...],
    chat: bool = False,
    graph: str | None,
    output: Path | None,
) -> None:
    """Open the bundle, run it once, print the answer, and write it to `output` when given.

    Raises:
        MetagenError: the bundle does not open here, or does not take what was handed over.
    """
    if output:
        _check_output(output)
    verify_files(bundle, read_manifest(bundle))
    with load(bundle, verify=False) as session:
        _announce_choices(session)
        pictures, named, tensors = _sort_inputs(session, inputs)
        request = Request(
            files=(*files, *pictures), named=named, prompts=prompts, inputs=tensors, graph=graph, chat=chat
        )
        _check_chat(session, request)
        pieces = None if request.inputs else session.pipeline.stream_answer(request)
        if pieces is not None:
            found = _print_pieces(request, pieces)
        else:
            found = answer(session, request)
            print_table("", found.header, found.spell_rows())
    if output:
        _write_answer(output, found)


def _check_output(path: Path) -> None:
    """Find out before the work what would fail after it."""
    if path.suffix.lower() not in _ANSWER_SUFFIXES:
        raise OutputError(
            "the kind of file to write is not known",
            where=str(path),
            allowed=", ".join(_ANSWER_SUFFIXES),
            fix="give a file with one of these endings with -o",
        )
    if path.suffix.lower() == ".gif":
        import_gif_writer()
    if not path.parent.is_dir():
        raise OutputError("the folder to write to does not exist", where=str(path.parent), fix="make it first")
    if path.is_dir():
        raise OutputError("this is a folder", where=str(path), fix="give a file with -o")
    if not os.access(path.parent, os.W_OK):
        raise OutputError("the folder cannot be written to", where=str(path.parent), fix="choose another with -o")
    temporary = _name_temporary(path)
    with translate_os_errors(path):
        try:
            temporary.touch()
        except FileNotFoundError:  # a file system that only the kernel fills
            raise OutputError(
                "no file can be made here", where=str(path.parent), fix="choose another folder with -o"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)


def _announce_choices(session: Session) -> None:
    """What runs each graph, and once what was passed over and why."""
    choices = session.backend_notes
    passed_over = dict.fromkeys(entry.partition(" on ")[2] for choice in choices for entry in choice.passed_over)
    for choice in choices:
        sys.stderr.write(f"{choice.graph}: {choice.file} on {choice.backend}, {choice.precision}\n")
    for reason in passed_over:
        sys.stderr.write(f"passed over {reason}\n")


def _check_chat(session: Session, request: Request) -> None:
    """InputError where there is no template; a word about one that is not used."""
    templated = session.pipeline.has_chat_template
    if request.chat and not templated:
        raise InputError(
            "this bundle's prompts have no chat template",
            allowed="prompts that are taken as they are",
            fix="leave out --chat",
        )
    if templated and request.prompts and not request.chat:
        sys.stderr.write("the prompt is taken as it is; --chat puts it into the model's chat template\n")


def _sort_inputs(
    session: Session, inputs: Mapping[str, str]
) -> tuple[list[str], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Pictures and files by modality for the pipeline, and `name=file` tensors for a graph.

    `image=digit.png` is a picture where the pipeline looks at pictures; otherwise it is the tensor called `image`.
    So is `pixels=digit.png` where a graph takes raw ones.
    """
    modalities = session.pipeline.modality_names
    tensors_known = {tensor.name for graph in session.graphs.values() for tensor in graph.graph.inputs}
    for name in inputs:
        if modalities and name not in (*modalities, *tensors_known):
            raise InputError(
                f"this bundle has neither a modality nor a tensor '{name}'",
                allowed=name_nearest(name, modalities),
                fix="use one of these: --input MODALITY=FILE",
            )
    media = [medium.get("kind") for medium in session.manifest.pipeline.get("media", ())]
    takes_pictures = "image" in session.manifest.pipeline or "picture" in media or "film" in media
    named = {name: file for name, file in inputs.items() if name in modalities}
    pictures = {
        name: file
        for name, file in inputs.items()
        if takes_pictures and name in ("image", "pixels") and not file.lower().endswith(_TENSOR_SUFFIXES)
    }
    tensors = (f"{name}={file}" for name, file in inputs.items() if name not in {**pictures, **named})
    return list(pictures.values()), tuple(named.items()), tuple(tensors)


def _print_pieces(request: Request, pieces: Iterator[str]) -> Answer:
    """Print a text as it comes."""
    text = []
    for piece in pieces:
        text.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return Answer(header=("prompt", "continuation"), rows=((" ".join(request.prompts), "".join(text)),))


def _write_answer(path: Path, found: Answer) -> None:
    """Write the answer to `path`; several pictures, sounds, ... to `<stem>-1`, `<stem>-2`, ... beside it.

    An .npz holds the answer's tensors, or those of a picture, film, sound or mesh before a file's levels round them.
    """
    suffix = path.suffix.lower()
    if suffix in _MEDIA_SUFFIXES:
        made = [one for one in found.media if suffix in SUFFIXES[type(one)]]
        if not made:
            usual = dict.fromkeys(SUFFIXES[type(one)][0] for one in found.media) or {".json": None}
            raise InputError(
                f"this answer holds nothing that a {suffix} could",
                got=str(path),
                allowed=", ".join([*usual, *([".json"] if found.media else [".txt"])]),
                fix=f"-o {path.stem}{next(iter(usual))}",
            )
        for numbered, one in _number(path, made):
            data = encode_medium(one, suffix)
            _write_file(numbered, lambda stream, data=data: stream.write(data))  # type: ignore[misc]
        return
    if suffix == ".npz" and not found.arrays and found.media:
        for numbered, one in _number(path, found.media):
            arrays = {key.name: np.asarray(getattr(one, key.name)) for key in fields(one)}
            _write_file(numbered, lambda stream, arrays=arrays: _write_arrays(stream, arrays))  # type: ignore[misc]
        return
    if suffix == ".npz" and not found.arrays:
        raise InputError(
            "this answer is text, not tensors", got=str(path), allowed=".json or .txt", fix=f"-o {path.stem}.json"
        )
    writers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".npz": lambda stream: _write_arrays(stream, found.arrays),
        ".json": lambda stream: stream.write((found.to_json() + "\n").encode(errors="replace")),
        ".txt": lambda stream: stream.write((found.to_text() + "\n").encode(errors="replace")),
    }
    _write_file(path, writers[suffix])


def _number(path: Path, media: Sequence[Medium]) -> Iterator[tuple[Path, Medium]]:
    """`path` for one, `<stem>-1`, `<stem>-2`, ... for several."""
    for index, one in enumerate(media, 1):
        yield path if len(media) == 1 else path.with_name(f"{path.stem}-{index}{path.suffix}"), one


def _write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write through a temporary file beside `path`, so that a failure leaves what was there."""
    temporary = _name_temporary(path)
    with translate_os_errors(path):
        try:
            with temporary.open("wb") as stream:
                write(stream)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    sys.stderr.write(f"wrote {path}\n")


def _name_temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _write_arrays(stream: IO[bytes], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """An .npz, as numpy.savez writes it; that one has no way to store an array called "file"."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
