"""Checkpoints as Hugging Face libraries save them -> spec and parameters. One family a file; IMPORTERS lists them.

    config.json --Importer.make_spec--> Spec        *.safetensors --Importer.map_tensors--> recipes --> parameters

No library of theirs is imported, no pickle read, no code of a checkpoint run.
"""

from __future__ import annotations

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.llama import LlamaImporter
from exporters.checkpoints.read import Checkpoint, open_checkpoint, read_spec, write_report

__all__ = ["IMPORTERS", "Checkpoint", "Folder", "Importer", "open_checkpoint", "read_spec", "write_report"]

IMPORTERS: tuple[Importer, ...] = (LlamaImporter(),)
