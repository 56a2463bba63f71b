"""What sentence-transformers puts around an encoder: modules.json -> pooling, one Dense, unit length, longest text.

modules.json: Transformer -> Pooling -> [Dense] -> [Normalize]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import USE_ONNX, Config
from exporters.checkpoints.files.recipes import Recipe, take_linear
from exporters.checkpoints.files.tensors import Tensors
from exporters.checkpoints.parts.activations import read_activation
from specs.errors import CheckpointError

_POOLINGS = {
    "cls": "class",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {"torch.nn.modules.activation.Tanh": "tanh", "torch.nn.modules.activation.ReLU": "relu"}
_ACTIVATIONS |= {"torch.nn.modules.activation.GELU": "gelu", "torch.nn.modules.activation.SiLU": "silu"}
_NO_ACTIVATION = "torch.nn.modules.linear.Identity"


@final
@dataclass(frozen=True, kw_only=True)
class SentenceModules:
    """Options of a `TextEncoderComponent`, where the Dense lies, and how many tokens a text may have.

    Args:
        options: empty where the folder is no sentence-transformers model.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    dense: str | None = None
    max_tokens: int | None = None


def read_sentence_modules(folder: Folder) -> SentenceModules:
    """What the folder's modules.json and the files that it names say.

    Raises:
        CheckpointError: a module, or an option of one, that is not implemented.
    """
    max_tokens = _read_max_tokens(folder)
    path = folder.path / "modules.json"
    if not path.is_file():
        return SentenceModules(max_tokens=max_tokens)
    modules = _list_modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in (
        [],
        ["Normalize"],
        ["Dense"],
        ["Dense", "Normalize"],
    ):
        raise CheckpointError(
            "these modules of sentence-transformers are not implemented",
            where=str(path),
            got=", ".join(kinds),
            allowed="Transformer, Pooling, then Dense and Normalize or not",
            fix=USE_ONNX,
        )
    places = dict(modules)
    options: dict[str, Any] = {"pooling": _read_pooling(folder.find_config(f"{places['Pooling']}/config.json"))}
    if "Dense" in places:
        options |= _read_dense(folder.find_config(f"{places['Dense']}/config.json"))
    options["normalise"] = "Normalize" in places
    whole = folder.find_config("config_sentence_transformers.json")
    whole.require("model_type", ("SentenceTransformer",), "SentenceTransformer")  # a cross or a sparse encoder is none
    _refuse_prompts(whole)
    folder.find_config("sentence_bert_config.json").require("do_lower_case", (False,), False)
    return SentenceModules(options=options, dense=places.get("Dense"), max_tokens=max_tokens)


def map_dense(ours: str, modules: SentenceModules) -> dict[str, Recipe]:
    """The Dense behind pooling, where there is one."""
    if modules.dense is None:
        return {}
    return take_linear(
        f"{ours}.embedding_head.projection", f"{modules.dense}/linear", bias=bool(modules.options["projection_bias"])
    )


def join_dense(folder: Folder, modules: SentenceModules) -> Tensors:
    """The encoder's tensors and the Dense's, its names with its folder before them."""
    if modules.dense is None:
        return folder.tensors
    return folder.tensors.join(f"{modules.dense}/", folder.open(modules.dense).tensors)


def _list_modules(folder: Folder) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in order."""
    path = folder.path / "modules.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in data]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            "modules.json cannot be read", where=str(path), got=str(error)[:160], fix="copy the model again"
        ) from None
    if any(".." in place or place.startswith("/") for _, place in modules):
        raise CheckpointError(
            "modules.json names a folder outside the model",
            where=str(path),
            fix="keep every module in the model's folder, and its path relative",
        )
    return modules


def _read_pooling(config: Config) -> str:
    config.require("include_prompt", (True,), True)
    modes = config.data.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_POOLINGS.items() if config.take(key, bool, False)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            "this pooling is not implemented",
            where=config.where,
            got=repr(modes)[:120],
            allowed=f"one of {', '.join(_POOLINGS)}",
            fix=USE_ONNX,
        )
    return _POOLINGS[modes[0]]


def _read_dense(config: Config) -> dict[str, Any]:
    config.require("use_residual", (False,), False)
    for key in ("module_input_name", "module_output_name"):
        config.require(key, ("sentence_embedding",), "sentence_embedding")
    name = config.require("activation_function", (*_ACTIVATIONS, _NO_ACTIVATION), "torch.nn.modules.activation.Tanh")
    known = Config({"activation_function": _ACTIVATIONS.get(name, "tanh")}, config.where)
    options: dict[str, Any] = {
        "projection_size": config.take("out_features", int),
        "projection_bias": config.take("bias", bool, True),
    }
    if name != _NO_ACTIVATION:
        options["projection_activation"] = read_activation(known, "activation_function", "tanh")
    return options


def _refuse_prompts(config: Config) -> None:
    """A default prompt is put before every text."""
    name = config.take("default_prompt_name", str, "")
    if name and config.take_config("prompts").take(name, str, ""):
        config.require("default_prompt_name", (None,), None)


def _read_max_tokens(folder: Folder) -> int | None:
    """The longest text: sentence_bert_config.json, else tokenizer_config.json, where none is a number far too large."""
    said = folder.find_config("sentence_bert_config.json").take("max_seq_length", int, 0)
    if said:
        return said
    length = folder.find_config("tokenizer_config.json").data.get("model_max_length")
    return length if type(length) is int and length < 1 << 20 else None
