"""T5's encoder alone: `T5EncoderModel`, `MT5EncoderModel`, `UMT5EncoderModel`; with what sentence-transformers adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from exporters.checkpoints.base import Folder, Importer
from exporters.checkpoints.files.recipes import Recipe
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.heads import refuse_heads
from exporters.checkpoints.parts.sentence import join_dense, map_dense, read_sentence_modules
from exporters.checkpoints.parts.t5 import explain_t5, make_t5, map_t5
from exporters.checkpoints.tokenizers.assets import describe_tokenizer
from specs.components.text.t5 import T5Component
from specs.schema import Spec

_LONGEST = 512  # where nothing says more: T5 was trained with it, though no table limits it


@final
class T5EncoderImporter(Importer):
    """The encoder; a decoder in the same file is left out."""

    title = "T5 encoder"
    model_types = ("t5", "mt5", "umt5")

    def make_spec(self, folder: Folder) -> dict[str, Any]:
        refuse_heads(folder, "the encoder, with or without its decoder, or a sentence-transformers model")
        modules = read_sentence_modules(folder)
        longest = modules.max_tokens or _LONGEST
        tokenizer = describe_tokenizer(folder)
        return {
            "modality": {"inputs": ["text"], "outputs": ["embedding"]},
            "objective": "masked",
            "components": {"encoder": {**make_t5(folder.config), **modules.options}},
            "dims": {"tokens": {"min": 1, "opt": min(64, longest), "max": longest}},
            **({"tokenizers": {"encoder": tokenizer}} if tokenizer else {}),
        }

    def open_tensors(self, folder: Folder) -> Tensors:
        return join_dense(folder, read_sentence_modules(folder))

    def map_tensors(self, spec: Spec, folder: Folder) -> Mapping[str, Recipe]:
        config = cast(T5Component, spec.components["encoder"])
        recipes = map_t5(config, folder.tensors, ours="encoder", theirs="")
        return recipes | map_dense("encoder", read_sentence_modules(folder))

    def explain_unused(self, spec: Spec, folder: Folder) -> Mapping[str, str]:
        left_out = "the encoder alone is exported"
        return {**explain_t5(""), "decoder.*": left_out, "lm_head.*": left_out}
