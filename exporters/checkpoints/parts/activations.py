"""`hidden_act` of a config as the name of one of our activations."""

from __future__ import annotations

from exporters.checkpoints.files.config import Config
from specs.components import Activation

#: transformers' name -> ours. Its GELUs by the tanh formula differ in how they are computed, not in what.
_NAMES: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def read_activation(config: Config, key: str, default: str) -> Activation:
    """The activation that `key` names.

    Raises:
        CheckpointError: it is one that is not implemented.
    """
    return _NAMES[config.require(key, tuple(_NAMES), default)]
