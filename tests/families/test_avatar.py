"""The avatar: what its parts mean, that it hears only the past, and its host loop against torch."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.runtime import Film, Request, load
from metagen_deploy import pipeline
from specs import ops
from specs.errors import InputError, SpecError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.models.avatar import Appearance, Motion, Renderer, make_positions, make_rotation
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress

NAME = "video_realtime_avatar:tiny"
SPEC = load_spec(NAME)


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    return {graph.name: graph.module for graph in get_handler(SPEC).build(SPEC)}


def start_state(motion: Motion, batch: int) -> list[torch.Tensor]:
    config = motion.config
    layers = (torch.zeros(batch, config.hidden_size, config.look_back(i)) for i in range(config.num_layers))
    return [torch.zeros(batch, config.past_samples), *layers]


def listen(motion: Motion, samples_BL: torch.Tensor, keypoints_BK3: torch.Tensor) -> torch.Tensor:
    """Moved keypoints of every frame, [frames, B, K, 3]."""
    state, moved = start_state(motion, len(samples_BL)), []
    for block in samples_BL.split(motion.config.samples_per_frame, dim=1):
        with torch.no_grad():
            keypoints, *state = motion(block, keypoints_BK3, *state)
        moved.append(keypoints)
    return torch.stack(moved)


def test_motion_hears_the_past_and_not_the_future(modules: dict[str, torch.nn.Module]) -> None:
    motion = modules["motion"]
    assert isinstance(motion, Motion)
    torch.manual_seed(0)
    frames, length = 6, motion.config.samples_per_frame
    voice, keypoints = torch.randn(2, frames * length) * 0.3, torch.rand(2, 5, 3)
    moved = listen(motion, voice, keypoints)
    changed = voice.clone()
    changed[:, 3 * length : 4 * length] += torch.randn(2, length)
    other = listen(motion, changed, keypoints)
    assert torch.equal(moved[:3], other[:3]), "a frame moved before its sound was there"
    assert (moved[3] - other[3]).abs().max() > 1e-3
    assert (moved[4] - other[4]).abs().max() > 1e-4, "the past was forgotten"


def test_state_is_all_that_a_layer_needs(modules: dict[str, torch.nn.Module]) -> None:
    """Layer by layer: two calls with the state between them equal one call over both."""
    motion = modules["motion"]
    assert isinstance(motion, Motion)
    for layer in motion.layers:
        width = motion.config.hidden_size
        x_BCT, past = torch.randn(2, width, 8), torch.zeros(2, width, layer.conv.dilation[0] * 2)
        with torch.no_grad():
            whole, skip, _ = layer(x_BCT, past)
            first, skip_a, state = layer(x_BCT[:, :, :4], past)
            second, skip_b, _ = layer(x_BCT[:, :, 4:], state)
        torch.testing.assert_close(torch.cat([first, second], 2), whole)
        torch.testing.assert_close(torch.cat([skip_a, skip_b], 2), skip)


def test_keypoints_that_stay_leave_the_volume_as_it_is(modules: dict[str, torch.nn.Module]) -> None:
    renderer = modules["renderer"]
    assert isinstance(renderer, Renderer)
    volume, keypoints = torch.randn(2, 8, 4, 8, 8), torch.rand(2, 5, 3) - 0.5
    with torch.no_grad():
        flow, occlusion = renderer.mix_motions(volume, keypoints, keypoints)
    torch.testing.assert_close(flow, make_positions(volume).expand_as(flow), atol=1e-6, rtol=0)
    torch.testing.assert_close(ops.grid_sample_3d(volume, flow), volume, atol=1e-5, rtol=0)
    assert 0 < occlusion.min() < occlusion.max() < 1


def test_a_keypoint_draws_its_neighbourhood_along(modules: dict[str, torch.nn.Module]) -> None:
    """All motions alike: then whatever the mixture, every voxel comes from where the keypoints were."""
    renderer = modules["renderer"]
    assert isinstance(renderer, Renderer)
    volume, keypoints = torch.randn(1, 8, 4, 8, 8), torch.rand(1, 5, 3) - 0.5
    shift = torch.tensor([0.25, -0.5, 0.125])
    with torch.no_grad():
        flow, _ = renderer.mix_motions(volume, keypoints, keypoints + shift)
    share = (flow - make_positions(volume)) / -shift  # the background's motion is none, so less than all
    assert 0 < share.min() <= share.max() < 1
    torch.testing.assert_close(share[..., 0], share[..., 1])


def test_positions_are_voxel_centres() -> None:
    volume = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    read = ops.grid_sample_3d(volume, make_positions(volume)[None])
    torch.testing.assert_close(read, volume)


def test_rotation_turns_and_keeps_lengths() -> None:
    turn = make_rotation(torch.tensor([[0.3, -0.7, 1.1], [0.0, 0.0, torch.pi / 2]], dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(turn @ turn.mT, eye.expand(2, 3, 3))
    assert torch.linalg.det(turn).sub(1).abs().max() < 1e-12
    torch.testing.assert_close(eye[0] @ turn[1], eye[1], atol=1e-12, rtol=0)


def test_keypoints_are_the_centre_of_their_heat(modules: dict[str, torch.nn.Module]) -> None:
    appearance = modules["appearance"]
    assert isinstance(appearance, Appearance)
    with torch.no_grad():
        volume, keypoints = appearance(torch.rand(2, 3, 32, 32))
        heat = (appearance.keypoints(volume) / appearance.config.temperature).flatten(2).softmax(-1)
    places = make_positions(volume).flatten(0, 2)
    torch.testing.assert_close(keypoints, torch.einsum("bkn,nc->bkc", heat, places))
    assert keypoints.abs().max() < 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avatar")
    pipeline.export(NAME, output=folder / "avatar.bundle", precisions=("fp32",), progress=ignore_progress)
    return folder / "avatar.bundle"


def write_voice(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def test_film_equals_torch(bundle: Path, modules: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    picture, voice = random.random((32, 32, 3), np.float32), random.uniform(-0.5, 0.5, 4 * 640 + 100)
    with load(bundle) as session:
        film = session.pipeline.animate(picture, voice.astype(np.float32))
    assert film.frames.shape == (5, 32, 32, 3), "a last frame of what is left, and silence"
    image = torch.from_numpy(picture.transpose(2, 0, 1)[None])
    padded = torch.nn.functional.pad(torch.from_numpy(voice.astype(np.float32)), (0, 540))[None]
    with torch.no_grad():
        volume, keypoints = modules["appearance"](image)
        moved = listen(modules["motion"], padded, keypoints)  # type: ignore[arg-type]
        frames = [modules["renderer"](volume, keypoints, one)[0].permute(1, 2, 0).numpy() for one in moved]
    assert np.abs(film.frames - np.stack(frames)).max() < 2e-5
    assert np.abs(film.frames[0] - film.frames[4]).max() > 1e-3, "nothing moves"


def test_request_is_one_picture_and_one_voice(bundle: Path, tmp_path: Path) -> None:
    voice = write_voice(tmp_path / "voice.wav", np.zeros(1280))
    picture = tmp_path / "picture.npy"
    np.save(picture, np.zeros((32, 32, 3), np.float32))
    with load(bundle) as session:
        answer = session.pipeline.answer(Request(files=(str(picture), str(voice))))
        assert isinstance(answer.media[0], Film)
        assert answer.rows[0][2] == 2
        with pytest.raises(InputError) as caught:
            session.pipeline.answer(Request(files=(str(picture),)))
        assert "one picture and one voice" in str(caught.value)
        with pytest.raises(InputError):
            session.pipeline.open_stream(str(picture)).step(np.zeros(639, np.float32))


def test_parts_must_agree() -> None:
    text = (
        (Path(pipeline.__file__).parents[1] / "specs/zoo/video_realtime_avatar.yaml").read_text().split("variants:")[0]
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(
            text.replace("hidden_size: 256, num_layers: 8}", "hidden_size: 256, num_layers: 8, num_keypoints: 3}"),
            source="my.yaml",
        )
    assert str(caught.value).startswith("motion.num_keypoints 3 is not appearance.num_keypoints\n  where:   my.yaml:")
