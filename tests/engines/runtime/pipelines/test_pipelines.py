"""The host loops: generation against a reference without a cache, and the rest against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.runtime import Request, Session, TextGeneration, answer, load
from engines.runtime.pipelines.stages.batching import softmax
from engines.runtime.text.tokenizers import BytesTokenizer
from specs.errors import BundleError, InputError, MissingDependency, ParityError
from tests.small_bundles import (
    MAX_CACHE,
    SIDE,
    VOCAB,
    change_manifest,
    generate_with_numpy,
    make_classifier,
    make_decoder_weights,
    write_classifier,
    write_clip,
    write_decoder,
)

WEIGHTS = make_decoder_weights()
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    session = load(write_decoder(tmp_path_factory.mktemp("d") / "d.bundle", WEIGHTS), threads=1)
    assert isinstance(session.pipeline, TextGeneration)
    return session.pipeline


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return load(write_clip(tmp_path_factory.mktemp("c") / "c.bundle"), threads=1)


# text generation


def test_greedy_tokens_are_those_of_a_decoder_without_a_cache(decoder: TextGeneration) -> None:
    """70 tokens cross two doublings of the cache (32, 64, 96), at another step for each prompt."""
    steps = list(decoder.stream_tokens(PROMPTS, max_new_tokens=70))
    assert len(steps) == 70
    for row, prompt in enumerate(PROMPTS):
        assert [step[row] for step in steps] == generate_with_numpy(WEIGHTS, prompt, 70)


def test_the_cache_can_be_filled_to_its_last_slot(decoder: TextGeneration) -> None:
    prompt = list(range(1, 41))
    new_tokens = MAX_CACHE - len(prompt) + 1  # the last token is never fed back
    steps = list(decoder.stream_tokens([prompt], max_new_tokens=new_tokens))
    assert [step[0] for step in steps] == generate_with_numpy(WEIGHTS, prompt, new_tokens - 1) + [steps[-1][0]]
    with pytest.raises(InputError) as caught:
        decoder.stream_tokens([prompt], max_new_tokens=new_tokens + 1)
    assert caught.value.problem == "the prompt and the new tokens do not fit the cache"
    assert caught.value.fix == f"ask for at most {new_tokens} new tokens, or shorten the prompt"


def test_a_prompt_ends_at_its_end_token_and_the_others_go_on(decoder: TextGeneration) -> None:
    free = [generate_with_numpy(WEIGHTS, prompt, 40) for prompt in PROMPTS]
    end = next(token for token in free[0] if token not in free[2])
    steps = list(decoder.stream_tokens(PROMPTS, max_new_tokens=40, end_token=end))
    for row, tokens in enumerate(free):
        stop = tokens.index(end) + 1 if end in tokens else len(tokens)
        got = [step[row] for step in steps]
        assert got[:stop] == tokens[:stop]
        assert set(got[stop:]) <= {None}


def test_generation_stops_when_every_prompt_has_ended(decoder: TextGeneration) -> None:
    first = generate_with_numpy(WEIGHTS, PROMPTS[0], 1)[0]
    assert list(decoder.stream_tokens([PROMPTS[0]], max_new_tokens=40, end_token=first)) == [(first,)]


def test_sampling_repeats_with_its_seed_and_stays_among_the_likeliest(decoder: TextGeneration) -> None:
    def sample(**settings: float) -> list[tuple[int | None, ...]]:
        return list(decoder.stream_tokens(PROMPTS, max_new_tokens=12, **settings))  # type: ignore[arg-type]

    assert sample(temperature=5.0, seed=1) == sample(temperature=5.0, seed=1)
    assert sample(temperature=5.0, seed=1) != sample(temperature=5.0, seed=2)
    assert sample(temperature=5.0, top_k=1) == sample()
    assert sample(temperature=1e-6, seed=3) == sample(temperature=1e-300) == sample()


def test_sampling_follows_the_softmax() -> None:
    from engines.runtime.pipelines.stages.sampling import Sampler, Sampling

    logits = np.log(np.tile([0.1, 0.2, 0.3, 0.4], (20000, 1))).astype(np.float32)
    drawn = np.bincount(Sampler(Sampling(temperature=1.0)).choose(logits), minlength=4) / len(logits)
    assert np.abs(drawn - [0.1, 0.2, 0.3, 0.4]).max() < 0.02
    drawn = np.bincount(Sampler(Sampling(temperature=1.0, top_k=2)).choose(logits), minlength=4) / len(logits)
    assert np.abs(drawn - [0, 0, 3 / 7, 4 / 7]).max() < 0.02


def test_text_goes_in_and_comes_out_in_pieces(decoder: TextGeneration) -> None:
    whole = decoder.generate(["hello", "yo"], max_new_tokens=20)
    expected = BytesTokenizer().decode(generate_with_numpy(WEIGHTS, list(b"hello"), 20))
    assert whole[0] == expected
    assert "".join(decoder.stream("hello", max_new_tokens=20)) == expected
    assert "".join(decoder.stream("yo", max_new_tokens=20)) == whole[1]


def test_nan_is_never_an_answer(tmp_path: Path) -> None:
    pictures = np.zeros((1, SIDE, SIDE), np.float32)
    graph = make_classifier(bias=float("nan"))
    folder = write_classifier(tmp_path / "c.bundle")
    onnx.save_model(graph, folder / "part/classifier.onnx")
    change_manifest(folder)
    with pytest.raises(ParityError, match="output 'logits' holds NaN or Inf"):
        load(folder, threads=1).pipeline.classify(pictures[0])
    pipeline = load(write_clip(tmp_path / "s.bundle"), threads=1).pipeline
    with pytest.raises(ParityError, match="output 'similarity' holds NaN or Inf"):
        pipeline.compare_features(np.full((2, 2), np.nan, np.float32), np.ones((2, 2), np.float32))


def test_probabilities_of_any_scores() -> None:
    shares = softmax(np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32))
    assert np.abs(shares - [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]).max() < 1e-12


def test_every_byte_is_shown_as_itself() -> None:
    text = bytes(range(128)).decode()
    assert BytesTokenizer().decode(range(128)) == text
    assert BytesTokenizer().encode(text) == list(range(128))


def test_nan_logits_stop_generation(tmp_path: Path) -> None:
    weights = {**WEIGHTS, "head": np.full_like(WEIGHTS["head"], np.nan)}
    session = load(write_decoder(tmp_path / "d.bundle", weights), threads=1)
    with pytest.raises(ParityError, match="logits are not finite"):
        session.pipeline.generate(["a"])


@pytest.mark.parametrize(
    ("prompts", "settings", "problem"),
    [
        ([], {}, "a prompt is empty"),
        ([[]], {}, "a prompt is empty"),
        ([[1], []], {}, "a prompt is empty"),
        ([[VOCAB]], {}, "a token id is outside the vocabulary"),
        ([[-1]], {}, "a token id is outside the vocabulary"),
        ([[1]], {"max_new_tokens": 0}, "these settings generate nothing"),
        ([[1]], {"temperature": -1.0}, "these settings generate nothing"),
        ([[1]], {"temperature": float("nan")}, "these settings generate nothing"),
        ([[1]], {"temperature": "hot"}, "these settings generate nothing"),
        ([[1]], {"top_k": 1.5}, "these settings generate nothing"),
        ([[1]], {"seed": None}, "these settings generate nothing"),
        ([[1]], {"temperature": float("inf")}, "these settings generate nothing"),
        ([[1]], {"top_k": -1}, "these settings generate nothing"),
        ([[1]], {"seed": -1}, "these settings generate nothing"),
        ([[1] * (MAX_CACHE + 1)], {}, "the prompt and the new tokens do not fit the cache"),
    ],
)
def test_requests_that_make_no_sense_are_refused_at_once(
    decoder: TextGeneration, prompts: list[list[int]], settings: dict[str, float], problem: str
) -> None:
    with pytest.raises(InputError) as caught:
        decoder.stream_tokens(prompts, **settings)  # type: ignore[arg-type]
    assert caught.value.problem == problem


def test_more_prompts_than_the_batch_takes_are_refused(decoder: TextGeneration) -> None:
    with pytest.raises(InputError, match="keep 'batch' in 1..4"):
        list(decoder.stream_tokens([[1]] * 5))


# tokenizers


@pytest.mark.parametrize("text", ["", "plain", "zwölf Grüße", "数字", "🙂 end"])
def test_bytes_come_back_as_they_went_in(text: str) -> None:
    assert BytesTokenizer().decode(BytesTokenizer().encode(text)) == text


def test_ids_that_are_no_bytes_are_shown() -> None:
    assert BytesTokenizer().decode([72, 105, 256, 0xC3, 300, 0xC3, 0xBC]) == "Hi<256>\ufffd<300>ü"


def test_a_tokenizer_file_of_the_bundle_is_used(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "hello": 1, "world": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    config = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    folder = tmp_path / "d.bundle"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets/tokenizer.json").write_text(json.dumps(config))
    write_decoder(folder, WEIGHTS, tokenizer={"kind": "tokenizers"})
    pipeline = load(folder, threads=1).pipeline
    assert pipeline.tokenizer.encode("hello world") == [1, 2]
    names = {index: word for word, index in words.items()}
    expected = " ".join(names[token] for token in generate_with_numpy(WEIGHTS, [1, 2], 6))
    assert pipeline.generate(["hello world"], max_new_tokens=6) == [expected]
    assert "".join(pipeline.stream("hello world", max_new_tokens=6)) == expected


def test_a_tokenizer_that_cannot_be_had_is_an_error_only_when_text_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d.bundle"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets/tokenizer.json").write_text("{}")
    write_decoder(folder, WEIGHTS, tokenizer={"kind": "tokenizers"})
    pipeline = load(folder, threads=1).pipeline
    assert len(list(pipeline.stream_tokens([[1]], max_new_tokens=3))) == 3
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="pip install tokenizers"):
        pipeline.generate(["hello"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokenizer": {"kind": "word"}}, "unknown tokenizer kind 'word'"),
        ({"tokenizer": {"kind": "tokenizers"}}, "not listed in the manifest"),
        ({"tokenizer": {"kind": "tokenizers", "file": "../t.json"}}, "outside the bundle"),
        ({"num_layers": 3}, "cannot be pipeline.prefill"),
        ({"num_layers": True}, "pipeline.num_layers must be int, got bool"),
        ({"max_cache": -5}, "pipeline.max_cache must be at least 1"),
        ({"decode": "decoder.prefill"}, "cannot be pipeline.decode"),
    ],
)
def test_a_malformed_description_is_refused_at_load(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    folder = write_decoder(tmp_path / "d.bundle", WEIGHTS, **changes)
    with pytest.raises(BundleError) as caught:
        load(folder, threads=1)
    assert problem in str(caught.value)


# pictures


def make_bar(column: int) -> np.ndarray:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[:, column] = 255
    return image


def test_classification_orders_labels_by_probability(tmp_path: Path) -> None:
    session = load(write_classifier(tmp_path / "c.bundle"), threads=1)
    best = session.pipeline.classify(make_bar(3))
    assert [label for label, _ in best] == ["right", "left", "middle"]
    assert best[0][1] == pytest.approx(np.exp(9) / (np.exp(9) + 2))
    assert sum(probability for _, probability in best) == pytest.approx(1)
    assert session.pipeline.classify(make_bar(2), top_k=1)[0][0] == "middle"
    many = session.pipeline.classify_all([make_bar(i % SIDE) for i in range(7)], top_k=1)  # batches of at most 4
    assert [row[0][0] for row in many] == ["left", "left", "middle", "right", "left", "left", "middle"]
    with pytest.raises(InputError, match="nothing to classify"):
        session.pipeline.classify_all([])


def test_classes_without_labels_are_numbers(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "c.bundle")
    raw = json.loads((folder / "manifest.json").read_text())
    del raw["pipeline"]["labels"]
    (folder / "manifest.json").write_text(json.dumps(raw))
    assert load(folder, threads=1).pipeline.classify(make_bar(3), top_k=1)[0][0] == "2"


def test_similarity_of_any_number_of_pictures_and_texts(clip: Session) -> None:
    """The graph takes 2 or 3 rows; 1, 4 and 5 are filled up or split."""
    left, right = make_bar(0), make_bar(3)
    for images in ([left], [left, right, left, left]):
        for texts in (["lll"], ["l", "rr", "lr", "", "rrrr"]):
            expected = [[text.count("l" if image is left else "r") * 0.5 for text in texts] for image in images]
            assert np.abs(clip.pipeline.compare(images, texts) - expected).max() < 1e-6


def test_texts_of_a_picture_are_ordered_by_probability(clip: Session) -> None:
    best = clip.pipeline.classify(make_bar(0), ["right", "left", "lll"])
    assert [text for text, _ in best] == ["lll", "left", "right"]
    assert best[0][1] == pytest.approx(np.exp(1.5) / (np.exp(1.5) + np.exp(0.5) + 1))


def test_texts_are_ended_and_padded(clip: Session) -> None:
    assert clip.pipeline.tokenize("ab").tolist() == [97, 98, 511] + [0] * 9
    assert clip.pipeline.tokenize("x" * 11).tolist() == [120] * 11 + [511]
    with pytest.raises(InputError, match="too many tokens"):
        clip.pipeline.tokenize("x" * 12)
    with pytest.raises(InputError, match="there are no texts"):
        clip.pipeline.compare([make_bar(0)], [])


# what the command line prints


def test_answers_of_every_pipeline(tmp_path: Path, clip: Session) -> None:
    picture = str(tmp_path / "bar.npy")
    np.save(picture, make_bar(3))
    classifier = load(write_classifier(tmp_path / "c.bundle"), threads=1)
    found = answer(classifier, Request(files=(picture,), top_k=1))
    assert found.to_text() == f"{'picture'.ljust(len(picture))}  label  probability\n{picture}  right  0.9998"
    probability = pytest.approx(0.99975, abs=1e-5)
    assert json.loads(found.to_json()) == [{"picture": picture, "label": "right", "probability": probability}]
    assert answer(clip, Request(files=(picture,), prompts=("l", "r"))).rows[0][1] == "r"
    decoder = load(write_decoder(tmp_path / "d.bundle", WEIGHTS), threads=1)
    expected = BytesTokenizer().decode(generate_with_numpy(WEIGHTS, list(b"hi"), 5))
    assert answer(decoder, Request(prompts=("hi",), max_new_tokens=5)).rows == (("hi", expected),)


def test_tensors_by_name_from_files(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", WEIGHTS), threads=1)
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3]]))
    np.save(tmp_path / "lengths.npy", np.array([3]))
    inputs = (f"token_ids={tmp_path}/ids.npy", f"lengths={tmp_path}/lengths.npy")
    found = answer(session, Request(inputs=inputs, graph="decoder.prefill"))
    assert [row[:3] for row in found.rows][0] == ("logits", "float32", (1, VOCAB))
    np.savez(tmp_path / "all.npz", **{"input:token_ids": np.array([[1, 2, 3]]), "lengths": np.array([3])})
    again = answer(session, Request(files=(str(tmp_path / "all.npz"),), graph="decoder.prefill"))
    assert (found.arrays["logits"] == again.arrays["logits"]).all()


def test_damaged_arrays_are_refused_and_pickles_stay_closed(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", WEIGHTS), threads=1)
    np.savez(tmp_path / "good.npz", token_ids=np.array([[1, 2, 3]]), lengths=np.array([3]))
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.array([1]))
    np.savez(tmp_path / "objects.npz", token_ids=np.array([{}], dtype=object))
    damaged = {
        "cut.npz": good[:-9],
        "empty.npz": b"",
        "text.npz": b"hello",
        "changed.npz": good.replace(b"NUMPY", b"NUMPI"),
    }
    damaged["array.npz"] = (tmp_path / "array.npy").read_bytes()
    damaged["objects.npz"] = (tmp_path / "objects.npz").read_bytes()
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="this file holds no arrays"):
            answer(session, Request(files=(str(tmp_path / name),), graph="decoder.prefill"))
    for name, data in {"archive.npy": good, "text.npy": b"hello", "empty.npy": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="array"):
            answer(session, Request(inputs=(f"lengths={tmp_path / name}",), graph="decoder.prefill"))


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (Request(), "this bundle takes a prompt"),
        (Request(files=("a.png",)), "this bundle takes a prompt"),
        (Request(inputs=("token_ids=a.npy",)), "say which graph these tensors are for"),
        (Request(inputs=("token_ids=a.npy",), graph="prefill"), "this bundle has no graph 'prefill'"),
        (Request(inputs=("ids=a.npy",), graph="decoder.prefill"), "--input 'ids=a.npy' names no input"),
        (Request(inputs=("token_ids",), graph="decoder.prefill"), "--input 'token_ids' names no input"),
        (Request(inputs=("token_ids=no.npy",), graph="decoder.prefill"), "this file holds no array"),
        (Request(files=("no.npz",), graph="decoder.prefill"), "this file holds no arrays"),
        (Request(inputs=("token_ids=no.png",), graph="decoder.prefill"), "input 'token_ids' is no picture"),
    ],
)
def test_what_a_bundle_does_not_take_is_refused(tmp_path: Path, request_: Request, problem: str) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", WEIGHTS), threads=1)
    with pytest.raises(InputError) as caught:
        answer(session, request_)
    assert caught.value.problem == problem
