"""The block generator: its stream, its modes, and the host loop's greedy stream against torch's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engines.runtime import Picture, Request, load
from engines.runtime.pipelines.blocks import Block as HostBlock
from metagen_deploy import pipeline
from specs import ops
from specs.errors import InputError, SpecError
from specs.handlers import get_handler
from specs.load import load_spec
from specs.models.blocks import Block, BlockDecoder, BlockGenerator, Mode, Structure, make_sinusoids
from specs.parameters.fill import fill_parameters
from specs.parsing.parse import parse_spec
from specs.progress import ignore_progress
from specs.schema import Spec
from specs.sources import ZOO

NAME = "multimodal_blocks:tiny"
TEXT, IMAGE = 0, 1


def make_generator(spec: Spec) -> BlockGenerator:
    with torch.device("meta"):
        parts = get_handler(spec).make_components(spec)
    fill_parameters(parts, spec.weights)
    decoder, structure = cast(BlockDecoder, parts["decoder"]), cast(Structure, parts["structure"])
    return BlockGenerator(decoder, structure, [cast(Mode, parts["text"]), cast(Mode, parts["image"])]).eval()


STREAM = [
    Block(TEXT, (3,), (72, 105, 33)),
    Block(IMAGE, (2, 3), (0, 3, 6, 9, 12, 15)),
    Block(TEXT, (2,), (65, 66)),
    Block(IMAGE, (1, 2), (7, 7)),
]
PROMPT = STREAM[0]


def train(generator: BlockGenerator, *, steps: int = 80) -> tuple[float, float]:
    """Learn STREAM by heart; the loss before and after."""
    for parameter in generator.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    losses = []
    with ops.plain_torch():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = generator.compute_loss(STREAM)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    generator.requires_grad_(False)
    return losses[0], losses[-1]


@pytest.fixture(scope="module")
def spec() -> Spec:
    return load_spec(NAME)


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def generator(spec: Spec, losses: list[float]) -> BlockGenerator:
    """Trained: random weights end at once, or repeat one mode."""
    torch.manual_seed(0)
    generator = make_generator(spec)
    losses += train(generator)
    return generator


@pytest.fixture(scope="module")
def bundle(generator: BlockGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    parts = {"decoder": generator.decoder, "structure": generator.structure}
    parts |= dict(zip(("text", "image"), generator.modes, strict=True))
    tensors = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    save_file(tensors, folder / "blocks.safetensors")
    pipeline.export(
        NAME,
        output=folder / "b.bundle",
        weights=folder / "blocks.safetensors",
        precisions=("fp32",),
        progress=ignore_progress,
    )
    return folder / "b.bundle"


def to_host(block: Block) -> HostBlock:
    return HostBlock(mode=("text", "image")[block.mode], shape=block.shape, tokens=block.tokens)


def test_interleaved_stream_equals_torchs(bundle: Path, generator: BlockGenerator) -> None:
    """The host goes element by element over a cache, torch reads the whole stream again for each."""
    with torch.no_grad():
        expected = generator.generate([PROMPT], max_blocks=3)
    assert [block.mode for block in expected] == [TEXT, IMAGE, TEXT, IMAGE]
    with load(bundle) as session:
        made = list(session.pipeline.generate([to_host(PROMPT)], max_blocks=3))
        again = list(session.pipeline.generate([to_host(block) for block in expected[:2]], max_blocks=2))
    assert made == [to_host(block) for block in expected[1:]]
    assert again == made[1:], "a stream that is handed over goes on as the one that was made"


def test_shapes_stay_within_their_mode(generator: BlockGenerator) -> None:
    with torch.no_grad():
        made = generator.generate([Block(TEXT, (1,), (200,))], max_blocks=3)
    for block in made:
        largest = cast(Mode, generator.modes[block.mode]).config.max_shape
        assert all(1 <= size <= most for size, most in zip(block.shape, largest, strict=True))
        assert len(block.tokens) == math.prod(block.shape)


def test_positions_count_from_the_start_of_the_block(generator: BlockGenerator) -> None:
    """The same block twice is embedded alike, wherever it stands."""
    with torch.no_grad():
        x_1TC = generator.embed_blocks([PROMPT, Block(IMAGE, (1, 2), (3, 4)), PROMPT])
    assert x_1TC.shape[1] == 1 + 5 + 5 + 5
    torch.testing.assert_close(x_1TC[:, 1:6], x_1TC[:, 11:16])
    assert (x_1TC[:, 1] - x_1TC[:, 0]).abs().max() > 0.1


def test_modes_have_vocabularies_of_their_own(generator: BlockGenerator) -> None:
    text, image = (cast(Mode, mode) for mode in generator.modes)
    state = torch.randn(2, text.config.hidden_size)
    assert text.distribute(state).shape == (2, 300)
    assert image.distribute(state).shape == (2, 16)
    assert torch.equal(text.sample(text.distribute(state)), text.distribute(state).argmax(-1))
    drawn = [
        text.sample(text.distribute(state), temperature=5.0, generator=torch.Generator().manual_seed(s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_loss_counts_what_is_there(generator: BlockGenerator) -> None:
    mode = cast(Mode, generator.modes[TEXT])
    logits, tokens = torch.randn(2, 4, 300), torch.randint(0, 300, (2, 4))
    targets, counts = mode.make_targets(tokens, torch.tensor([4, 2]))
    by_hand = -logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
    expected = (by_hand[0].sum() + by_hand[1, :2].sum()) / 6
    torch.testing.assert_close(mode.compute_loss(logits, targets, counts), expected)


def test_training_learns_mode_shape_tokens_and_end(generator: BlockGenerator, losses: list[float]) -> None:
    """Next-sequence prediction: what was learned comes back greedily, from nothing."""
    first, last = losses
    assert last < 0.1 < first
    with torch.no_grad():
        assert generator.generate(max_blocks=9) == STREAM


def test_sinusoids_tell_positions_apart() -> None:
    table = make_sinusoids(torch.arange(64)[None], 48, torch.float64)[0]
    assert table.shape == (64, 48)
    distance = (table[:, None] - table[None]).norm(dim=-1) + torch.eye(64) * 9
    assert distance.min() > 0.3
    assert make_sinusoids(torch.zeros(1, 1, dtype=torch.int64), 7, torch.float32)[0, 0].tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"mode": "sound", "shape": (1,), "tokens": (1,)}, "there is no mode 'sound'"),
        ({"mode": "text", "shape": (13,), "tokens": (1,) * 13}, "cannot have this shape"),
        ({"mode": "text", "shape": (0,), "tokens": ()}, "cannot have this shape"),
        ({"mode": "image", "shape": (2,), "tokens": (1, 2)}, "cannot have this shape"),
        ({"mode": "image", "shape": (1, 2), "tokens": (1,)}, "one token for each place"),
        ({"mode": "image", "shape": (1, 2), "tokens": (1, 16)}, "outside the vocabulary"),
    ],
)
def test_blocks_that_cannot_be(bundle: Path, block: dict[str, Any], words: str) -> None:
    with load(bundle) as session, pytest.raises(InputError) as caught:
        session.pipeline.generate([HostBlock(**block)])
    assert words in str(caught.value)


def test_answer_shows_blocks_and_pictures(bundle: Path) -> None:
    with load(bundle) as session:
        answer = session.pipeline.answer(Request(prompts=("Hi!",)))
        with pytest.raises(InputError):
            session.pipeline.answer(Request(prompts=("a text that is too long",)))
    pictures = [row for row in answer.rows if row[2] == "image"]
    assert len(answer.media) == len(pictures) > 0
    picture = answer.media[0]
    assert isinstance(picture, Picture)
    assert picture.pixels.shape == (*cast(tuple[int, ...], pictures[0][3]), 3)
    assert 0 <= np.min(picture.pixels) <= np.max(picture.pixels) <= 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_modes: 2", "num_modes: 3", "structure.num_modes 3 is not the number of modes"),
        ("max_size: 256", "max_size: 99", "structure.max_size 99 is not the largest size of any mode's max_shape"),
        (
            "hidden_size: 768, vocab_size: 8192",
            "hidden_size: 512, vocab_size: 8192",
            "image.hidden_size 512 is not decoder.hidden_size",
        ),
        ("max_shape: [32, 32]", "max_shape: [32]", "max_shape of blocks.image needs 2 numbers, got 1"),
    ],
)
def test_parts_must_agree(old: str, new: str, words: str) -> None:
    text = (ZOO / "multimodal_blocks.yaml").read_text().split("variants:")[0]
    assert text.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace(old, new), source="my.yaml")
    assert words in str(caught.value)
    assert "my.yaml:" in str(caught.value)
