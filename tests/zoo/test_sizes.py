"""What `show` says of every shipped spec is what its modules have; full sizes are built on the meta device."""

from __future__ import annotations

import pytest
import torch

from specs.graphs import count_activations, count_macs, count_parameters
from specs.handlers import get_handler
from specs.load import load_spec
from specs.sources import list_zoo
from tests.zoo.whole_path import list_tiny_specs

TINY_PARAMETERS = 3_000_000

#: What the design documents say, in parameters; within 5 %.
DOCUMENTED = {
    "text_llm_8b": 8.03e9,  # Llama 3.1's own count, of "8B"
    "text_llm_tiny": 50e6,
    "image_vit_base": 86e6,
    "audio_musicgen": 1e9,
}


def count_modules(name: str) -> dict[str, int]:
    with torch.device("meta"):
        modules = get_handler(load_spec(name)).make_components(load_spec(name))
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


@pytest.mark.parametrize("name", sorted({*list_zoo(), *list_tiny_specs()}))
def test_parameters_are_counted_as_they_are(name: str) -> None:
    """A scheduler is arithmetic of the host: no module, no parameters, no products."""
    spec = load_spec(name)
    hosts = {part for part, component in spec.components.items() if component.kind == "diffusion.scheduler"}
    assert {part: count for part, count in count_parameters(spec).items() if part not in hosts} == count_modules(name)
    assert all((macs > 0) == (part not in hosts) for part, macs in count_macs(spec).items())


@pytest.mark.parametrize("name", list_tiny_specs())
def test_tiny_is_tiny(name: str) -> None:
    assert sum(count_parameters(load_spec(name)).values()) <= TINY_PARAMETERS


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name in list_zoo()])
def test_full_size_is_the_documents(name: str) -> None:
    assert sum(count_parameters(load_spec(name)).values()) == pytest.approx(DOCUMENTED[name], rel=0.05)


@pytest.mark.parametrize("name", list_tiny_specs())
def test_three_samples_hold_three_times_as_much(name: str) -> None:
    """Of every part; a similarity compares each of a batch with each. No size makes a part hold less."""
    spec = load_spec(name)
    sizes = {dim: size.opt for dim, size in spec.dims.items()} | {"batch": 2}
    two, six = (count_activations(spec, {**sizes, "batch": batch}) for batch in (2, 6))
    for part, component in spec.components.items():
        if part in two and component.kind not in ("fusion.late", "fusion.sigmoid"):
            assert six[part] == (3 * two[part].layer, 3 * two[part].interface), part
    for dim in sizes:
        more = count_activations(spec, sizes | {dim: 2 * sizes[dim]})
        for part, held in two.items():
            assert more[part].layer >= held.layer and more[part].interface >= held.interface, (dim, part)
