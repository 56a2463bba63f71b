"""Text to mesh: the triplane's layout, the field's sphere, and the surface that marching cubes finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.runtime import Mesh, Request, load
from metagen_deploy import pipeline
from specs.components.mesh import FieldComponent
from specs.errors import InputError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.models.mesh import Field, Triplane
from specs.progress import ignore_progress

NAME = "3d_text_to_mesh:tiny"
SPEC = load_spec(NAME)


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    return {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}


def test_tokens_lie_where_their_patch_is(modules: dict[str, torch.nn.Module]) -> None:
    """A token that differs changes its own patch of its own plane; attention is cut off to see that alone."""
    triplane = modules["triplane"]
    assert isinstance(triplane, Triplane)
    config = triplane.config
    text, latent = torch.randn(1, config.text_size), torch.randn(1, config.latent_size)
    layers, triplane.layers = triplane.layers, torch.nn.ModuleList()
    try:
        with torch.no_grad():
            before = triplane(text, latent)
            kept = triplane.position_embedding[21].clone()  # plane 1, row 1, column 1 of 4 by 4
            triplane.position_embedding[21] = torch.randn(config.hidden_size)
            after = triplane(text, latent)
            triplane.position_embedding[21] = kept
    finally:
        triplane.layers = layers
    changed = (before != after)[0].any(1)  # [3, P, P]
    expected = torch.zeros_like(changed)
    patch = config.patch_size
    expected[1, patch : 2 * patch, patch : 2 * patch] = True
    assert torch.equal(changed, expected)


def test_planes_are_read_where_a_point_falls_on_them() -> None:
    config = FieldComponent(kind="mesh.field", plane_channels=1, plane_size=4, hidden_size=4, num_layers=1)
    field = Field(config)
    ramp = (torch.arange(4, dtype=torch.float32) * 2 + 1) / 4 - 1  # the coordinate at each cell's centre
    planes = torch.stack([ramp.expand(4, 4), 10 * ramp.expand(4, 4), 100 * ramp.expand(4, 4).T])[None, :, None]
    points = torch.tensor([[[0.25, -0.5, 0.75], [-0.75, 0.1, -0.2]]])
    read = field.read_planes(planes, points)[0, :, 0]
    # planes (x, y), (x, z), (y, z): the first two grow with x, the third with its second axis, z
    torch.testing.assert_close(read, 11 * points[0, :, 0] + 100 * points[0, :, 2])


def test_a_network_that_says_nothing_leaves_the_sphere() -> None:
    config = FieldComponent(kind="mesh.field", plane_channels=2, plane_size=4, hidden_size=4, num_layers=1, radius=0.4)
    field = Field(config)
    torch.nn.init.zeros_(field.output.weight)
    torch.nn.init.zeros_(field.output.bias)
    points = torch.rand(1, 50, 3) * 2 - 1
    distance, colour = field(torch.randn(1, 3, 2, 4, 4), points)
    torch.testing.assert_close(distance, points.norm(dim=-1) - 0.4)
    assert torch.equal(colour, torch.full((1, 50, 3), 0.5))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    pipeline.export(NAME, output=folder / "mesh.bundle", precisions=("fp32",), progress=ignore_progress)
    return folder / "mesh.bundle"


def test_surface_lies_where_torch_has_distance_zero(bundle: Path, modules: dict[str, torch.nn.Module]) -> None:
    with load(bundle) as session:
        mesh = session.pipeline.make_mesh("a chair", resolution=24)
        planes = session.pipeline.make_planes("a chair")
        assert np.abs(planes - session.pipeline.make_planes("a table")).max() > 1e-3
        assert np.abs(planes - session.pipeline.make_planes("a chair", seed=1)).max() > 1e-3
    with torch.no_grad():
        distance, colour = modules["field"](torch.from_numpy(planes), torch.from_numpy(mesh.vertices[None]))
    assert distance.abs().max() < 0.5 * 2 / 23, "every vertex lies between two points of the grid"
    assert distance.abs().mean() < 0.1 * 2 / 23
    assert np.abs(colour[0].numpy() - mesh.colours).max() < 1e-4
    assert mesh.faces.min() == 0
    assert mesh.faces.max() == len(mesh.vertices) - 1
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all(), "the surface is closed"


def test_blocks_of_points_make_no_difference(bundle: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3)).astype(np.float32)  # the graph takes 4096
    with load(bundle) as session:
        planes = session.pipeline.make_planes("a chair")
        distance, _ = session.pipeline.read_field(planes, points)
        alone, _ = session.pipeline.read_field(planes, points[4999:])
    assert distance.shape == (5000,)
    assert np.abs(distance[4999] - alone[0]) < 1e-5


def test_request_is_texts(bundle: Path) -> None:
    with load(bundle) as session:
        answer = session.pipeline.answer(Request(prompts=("a chair", "a table")))
        assert [type(one) for one in answer.media] == [Mesh, Mesh]
        with pytest.raises(InputError):
            session.pipeline.answer(Request(files=("a.png",)))
