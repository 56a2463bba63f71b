"""MusicGen against transformers: logits with and without a text, the cache, delay, guidance, stereo, sound."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from engines.runtime import Request, Sound, load
from engines.runtime.pipelines import TextToAudio
from exporters.checkpoints import open_checkpoint, read_spec
from specs.errors import InputError, MetagenError
from specs.graphs import count_parameters
from specs.handlers import GraphModule
from specs.models.audio import musicgen as ours
from specs.schema import Spec
from tests.checkpoints.compare import Array, compare, export, open_portable, record_tokens
from tests.checkpoints.speech import Run, build, open_loop, run_onnx, run_torch
from tests.checkpoints.support import edit_config
from tests.checkpoints.tiny_musicgen import CASES, PROMPTS, START, save

FAMILY = "MusicGen"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint in three forms: the library's, our modules, our portable graphs."""

    name: str
    folder: Path
    spec: Spec
    graphs: dict[str, GraphModule]
    fp32: hf.MusicgenForConditionalGeneration
    fp64: hf.MusicgenForConditionalGeneration
    onnx: dict[str, Run]
    bundle: Path | None = None

    def run_torch(self) -> dict[str, Run]:
        return {name: run_torch(graph) for name, graph in self.graphs.items()}

    def open_loop(self, runs: dict[str, Run]) -> TextToAudio:
        bare = self.spec.model_copy(update={"tokenizers": {}})  # no bundle, no file to read one from
        loop = open_loop(bare, self.graphs, runs, self.folder)
        assert isinstance(loop, TextToAudio)
        return loop


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = save(tmp_path_factory.mktemp("musicgen") / request.param, request.param)
    spec, graphs = build(folder)
    fp32, fp64 = (
        hf.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        for dtype in (torch.float32, torch.float64)
    )
    same = {"name": request.param, "folder": folder, "spec": spec, "graphs": graphs, "fp32": fp32, "fp64": fp64}
    if request.param != "mono":
        return Case(**same, onnx={name: run_onnx(spec, graph, folder) for name, graph in graphs.items()})
    bundle = export(folder, folder.with_suffix(".bundle"), precisions=("fp32",))
    return Case(**same, onnx={name: in_order(run) for name, run in open_portable(bundle).items()}, bundle=bundle)


def in_order(run: Callable[..., dict[str, Array]]) -> Run:
    return lambda feed: list(run(feed).values())


def pad(prompts: tuple[list[int], ...]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, N], padded on the right."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
    return ids, mask


def compute_logits(model: hf.MusicgenForConditionalGeneration, codes: Array) -> Tensor:
    """[B, Q, T, V]: the prompts' rows, and as many without a text."""
    ids, mask = pad(PROMPTS)
    with torch.no_grad():
        states = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model(
            encoder_outputs=(torch.cat([states, torch.zeros_like(states)]),),
            attention_mask=torch.cat([mask, torch.zeros_like(mask)]),
            decoder_input_ids=torch.from_numpy(codes.reshape(-1, codes.shape[2])),
        ).logits
    return logits.reshape(*codes.shape[:2], codes.shape[2], -1)


def draw_codes(frames: int) -> Array:
    """Any codes, start tokens among them: [2 prompts, Q, T]."""
    return np.random.default_rng(3).integers(0, START + 1, (2 * len(PROMPTS), 4, frames))


def read_texts(run: Run) -> dict[str, Array]:
    """The prompts' states and lengths, then the same as rows without a text."""
    ids, mask = pad(PROMPTS)
    lengths = mask.sum(1).numpy()
    states = run({"token_ids": ids.numpy(), "lengths": lengths})[0]
    return {
        "states": np.concatenate([states, np.zeros_like(states)]),
        "text_lengths": np.concatenate([lengths, np.zeros_like(lengths)]),
    }


def compare_logits(case: Case, stage: str, runs: dict[str, Run]) -> None:
    """A prompt of 9 frames, then 3 more against a cache that has room for 13."""
    codes, first = draw_codes(12), 9
    fp32, fp64 = (compute_logits(model, codes) for model in (case.fp32, case.fp64))
    text = read_texts(runs["text_encoder"])
    names = [tensor.name for tensor in case.graphs["decoder.prefill"].outputs]
    results = dict(zip(names, runs["decoder.prefill"]({"codes": codes[:, :, :first], **text}), strict=True))
    cross = {name: value for name, value in results.items() if name.startswith("cross_")}
    own = [name for name in results if name.startswith(("keys", "values"))]
    past = {f"past_{name}": np.pad(results[name], ((0, 0), (0, 0), (0, 13 - first), (0, 0))) for name in own}
    past = {name: np.where(np.arange(13)[:, None] < first, value, np.float32(7)) for name, value in past.items()}
    for frame in range(first - 1, 12):
        if frame >= first:
            lengths = np.full(len(codes), frame)
            feed = {"codes": codes[:, :, frame : frame + 1], "lengths": lengths, "text_lengths": text["text_lengths"]}
            stepped = runs["decoder.decode"]({**feed, **past, **cross})
            results = dict(zip(["logits", *own], stepped, strict=True))
            past = {f"past_{name}": results[name] for name in own}
        where = f"{case.name}, frame {frame}"
        compare(FAMILY, where, stage, "logits", results["logits"], fp32[:, :, frame], fp64[:, :, frame])


def generate(model: hf.MusicgenForConditionalGeneration, **options: Any) -> tuple[Array, Array]:
    """The library's codes [B, Q, F] and samples."""
    heard: list[Tensor] = []

    def spy(self: Any, codes: Tensor, *args: Any, **kwargs: Any) -> Any:
        heard.append(codes[0])
        return type(self).decode(self, codes, *args, **kwargs)

    ids, mask = pad(PROMPTS)
    model.audio_encoder.decode = MethodType(spy, model.audio_encoder)
    try:
        with torch.no_grad():
            samples = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **options)
    finally:
        del model.audio_encoder.decode
    codes = heard[0] if len(heard) == 1 else torch.stack(heard, dim=2).flatten(1, 2)  # left and right take turns
    return codes.numpy(), samples.numpy()


def test_logits_equal_the_library(case: Case) -> None:
    compare_logits(case, "torch", case.run_torch())
    compare_logits(case, "onnx", case.onnx)


@pytest.mark.parametrize("steps", [1, 2, 6, 33])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_and_their_sound_equal_the_library(case: Case, guidance: float, steps: int) -> None:
    """6 steps are the fewest that are delayed, 33 need a second cache."""
    options = {"guidance_scale": guidance, "max_new_tokens": steps}
    theirs, fp32 = generate(case.fp32, **options)
    loop = case.open_loop(case.onnx)
    codes = loop.generate_codes(PROMPTS, **options)
    record_tokens(FAMILY, f"{case.name}, guidance {guidance}, {steps} steps", codes, theirs)
    again, fp64 = generate(case.fp64, **options)
    if np.array_equal(again, codes):
        compare(FAMILY, f"{case.name}, {steps} steps", "onnx", "samples", loop.decode_codes(codes), fp32, fp64)


def test_parameters_are_what_the_spec_counts(case: Case) -> None:
    counts = count_parameters(case.spec)
    for graph in case.graphs.values():
        assert sum(p.numel() for p in graph.module.parameters()) == counts[graph.component], graph.name


def test_rows_do_not_see_each_other(case: Case) -> None:
    loop = case.open_loop(case.run_torch())
    together = loop.generate_codes(PROMPTS, max_new_tokens=9)
    for row, prompt in zip(together, PROMPTS, strict=True):
        np.testing.assert_array_equal(loop.generate_codes([prompt], max_new_tokens=9)[0], row)
    many = loop.generate_codes([*PROMPTS, *PROMPTS], max_new_tokens=9)  # more than a batch of 8 holds twice
    np.testing.assert_array_equal(many[3:], together)


def test_sampling_is_seeded_and_stays_among_the_likeliest(case: Case) -> None:
    loop = case.open_loop(case.onnx)

    def draw(seed: int, **options: Any) -> Array:
        return loop.generate_codes(PROMPTS[:1], max_new_tokens=12, temperature=1.0, seed=seed, **options)

    assert np.array_equal(draw(1, top_k=8), draw(1, top_k=8))
    assert not np.array_equal(draw(1, top_k=8), draw(2, top_k=8))
    greedy = loop.generate_codes(PROMPTS[:1], max_new_tokens=12)
    np.testing.assert_array_equal(draw(5, top_k=1), greedy)


def test_bfloat16_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "half", "mono", dtype=torch.bfloat16)
    spec, graphs = build(folder)
    fp32, fp64 = (
        hf.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        for dtype in (torch.float32, torch.float64)
    )
    half = Case(name="bfloat16", folder=folder, spec=spec, graphs=graphs, fp32=fp32, fp64=fp64, onnx={})
    compare_logits(half, "torch", half.run_torch())


def _swap_waves(count: int, width: int) -> Array:
    return np.roll(ours_make_positions(count, width), width // 2, axis=1)


ours_make_positions = ours.make_positions
MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "sines-before-cosines": lambda patch: patch.setattr(ours, "make_positions", _swap_waves),
    "padding-seen": lambda patch: patch.setattr(torch.Tensor, "masked_fill", lambda x, mask, value: x),
    "gelu-by-tanh": lambda patch: patch.setattr(
        ours, "activate", lambda x, _: torch.nn.functional.gelu(x, approximate="tanh")
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "mono", "mono")
    fp32, fp64 = (
        hf.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        for dtype in (torch.float32, torch.float64)
    )
    logits = {id(model): compute_logits(model, draw_codes(12)) for model in (fp32, fp64)}
    monkeypatch.setitem(globals(), "compute_logits", lambda model, codes: logits[id(model)])
    MUTANTS[mutant](monkeypatch)
    spec, graphs = build(folder)
    wrong = Case(name=mutant, folder=folder, spec=spec, graphs=graphs, fp32=fp32, fp64=fp64, onnx={})
    with pytest.raises(AssertionError, match="more than"):
        compare_logits(wrong, "torch", wrong.run_torch())


def edit(part: str, **changes: Any) -> Callable[[Path], None]:
    """A change of one part of the config."""

    def spoil(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        edit_config(folder, **{part: {**data[part], **changes}})

    return spoil


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "text-encoder-of-another-kind": (edit("text_encoder", model_type="bert"), "'model_type' is 'bert'"),
    "codec-of-another-kind": (edit("audio_encoder", model_type="dac"), "'model_type' is 'dac'"),
    "start-token-among-the-codes": (
        lambda folder: edit_config(folder, "generation_config.json", decoder_start_token_id=0),
        "'decoder_start_token_id' is 0",
    ),
    "end-among-the-codes": (
        lambda folder: edit_config(folder, "generation_config.json", eos_token_id=3),
        "'eos_token_id' of the generation config is a code",
    ),
    "penalty": (
        lambda folder: edit_config(folder, "generation_config.json", repetition_penalty=1.2),
        "'repetition_penalty' of the generation config changes what is made",
    ),
    "padding-among-the-codes": (edit("decoder", pad_token_id=3), "'pad_token_id' is 3"),
    "other-width-without-projection": (
        edit("decoder", cross_attention_hidden_size=24),
        "'hidden_size' is 30 in the checkpoint's config, which is not implemented",
    ),
    "activation": (edit("decoder", activation_function="mish"), "'activation_function' is 'mish'"),
    "codec-with-too-few-codebooks": (edit("audio_encoder", target_bandwidths=[0.12]), "contradicts itself: "),
    "codec-with-too-few-codes": (edit("audio_encoder", codebook_size=32), "contradicts itself: "),
    "codec-of-two-channels": (edit("audio_encoder", audio_channels=2), "contradicts itself: "),
    "odd-stereo": (edit("decoder", audio_channels=2, num_codebooks=3), "contradicts itself: "),
    "heads-that-do-not-divide": (edit("decoder", num_attention_heads=4), "contradicts itself: "),
    "a-layer-more": (edit("decoder", num_hidden_layers=3), "lacks the tensor 'decoder.model.decoder.layers.2."),
    "a-layer-less": (edit("text_encoder", num_layers=1), "has no place in the model that its config describes"),
    "wider-mlp": (edit("decoder", ffn_dim=52), "'decoder.layers.0.up.weight' has the wrong shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str, case: Case, tmp_path: Path) -> None:
    if case.name != "mono":
        pytest.skip("one checkpoint will do")
    for file in case.folder.iterdir():
        if file.suffix != ".onnx":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil, words = REFUSED[name]
    spoil(tmp_path)
    with pytest.raises(MetagenError) as caught:
        build(tmp_path)
    assert words in str(caught.value).splitlines()[0], str(caught.value)


def test_every_tensor_is_used_or_named(case: Case) -> None:
    unused = open_checkpoint(case.folder).unused
    assert {reason for name, reason in unused.items() if "audio_encoder.encoder." in name} == {
        "music is made, not read"
    }
    assert not any(name.startswith(("decoder.", "text_encoder.", "enc_to_dec_proj")) for name in unused)
    assert read_spec(case.folder).components == case.spec.components


def test_requests_that_make_nothing(case: Case) -> None:
    loop = case.open_loop(case.run_torch())
    for prompts, options, words in (
        ([], {}, "a prompt is empty"),
        ([[]], {}, "a prompt is empty"),
        ([[300]], {}, "a token id is outside the vocabulary"),
        ([[1] * 300], {}, "a prompt is too long"),
        ([[1]], {"max_new_tokens": 0}, "so many steps do not fit"),
        ([[1]], {"max_new_tokens": 2100}, "so many steps do not fit"),
        ([[1]], {"guidance_scale": 0.5}, "these settings generate nothing"),
        ([[1]], {"temperature": float("nan")}, "these settings generate nothing"),
    ):
        with pytest.raises(InputError, match=words):
            loop.generate_codes(prompts, **options)


def test_a_bundle_makes_a_wav(case: Case, tmp_path: Path, metagen: Callable[..., Any]) -> None:
    """From the command line, by the tokenizer that came with the checkpoint."""
    if case.bundle is None:
        pytest.skip("one bundle will do")
    done = metagen("run", case.bundle, "--prompt", "a waltz", "-o", "waltz.wav")
    assert done.returncode == 0, done.stderr
    with wave.open(str(tmp_path / "waltz.wav")) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 400)
        assert file.getnframes() == 10 * 400
    with load(case.bundle) as session:
        assert isinstance(session.pipeline, TextToAudio)
        assert session.pipeline.tokenizer.encode("drums waltz") == [13, 12, 1]
        answer = session.pipeline.answer(Request(prompts=("a waltz", "drums"), max_new_tokens=12))
    assert answer is not None
    assert [type(one) for one in answer.media] == [Sound, Sound]
    assert answer.media[0].samples.shape == (1, 9 * 40)  # type: ignore[union-attr]
