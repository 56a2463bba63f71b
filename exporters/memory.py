"""Keeps an export's memory near the largest tensor instead of the whole model.

Parameters lie in mapped files (`specs.handlers.weights` puts them there). Between two steps that need them, `page_out`
lets the system take their pages back; touching them reads them again, mostly from its cache. What happens while a
module computes is in `stored_parameters.py`.
"""

from __future__ import annotations

import torch
from torch import nn

from specs.handlers import get_handler
from specs.handlers.weights import drop_tensor, lies_in_file
from specs.pages import list_file_mappings, trim_heap
from specs.schema import Spec


def page_out(module: nn.Module) -> None:
    """Drop the pages of parameters in mapped files from this process, and give freed heap back to the system."""
    mappings = list_file_mappings()
    for parameter in module.parameters():
        if lies_in_file(parameter, mappings):
            drop_tensor(parameter)
    trim_heap()


def release(module: nn.Module) -> None:
    """Give up the parameters: they are in the bundle now, and everything after works from there.

    Dropping the module would not do: torch's exporter and onnxscript's rewriter keep references to the last model.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    trim_heap()


def find_largest_tensor(spec: Spec) -> int:
    """Elements of the largest parameter; nothing is allocated."""
    with torch.device("meta"):
        components = get_handler(spec).make_components(spec)
    return max(parameter.numel() for module in components.values() for parameter in module.parameters())
