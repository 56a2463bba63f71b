"""What every host loop offers the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from specs.bundle import Manifest

if TYPE_CHECKING:
    from engines.runtime.graph_session import GraphSession
    from engines.runtime.request import Answer, Request


class Pipeline(ABC):
    """A whole model: the graphs of a bundle and what a host does between them."""

    @abstractmethod
    def __init__(self, folder: Path, manifest: Manifest, graphs: Mapping[str, GraphSession]) -> None:
        """Take the graphs that `manifest.pipeline` names; BundleError when one is missing or has other tensors."""

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names that `--input NAME=FILE` can give a file to instead of to a tensor; those of the spec's components."""
        return ()

    @property
    def has_chat_template(self) -> bool:
        """Whether a prompt may be put into a conversation first (`Request.chat`)."""
        return False

    @abstractmethod
    def answer(self, request: Request) -> Answer | None:
        """The answer to a request; None where this pipeline gives tensors no meaning.

        Raises:
            InputError: nothing was handed over, or not what this pipeline takes.
        """

    def stream_answer(self, request: Request) -> Iterator[str] | None:
        """The answer as text in pieces, as they are decided; None where it is no running text."""
        return None
