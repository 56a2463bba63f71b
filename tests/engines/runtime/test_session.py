"""The session: what it gives, what it accepts, and what it refuses and in which words."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.runtime import Request, Session, answer, load
from specs.errors import InputError, ParityError
from tests.small_bundles import (
    CLASSES,
    SIDE,
    write_bundle,
    write_classifier,
    write_decoder,
)
from tests.small_bundles import make_decoder_weights as make_weights


@pytest.fixture
def session(bundle: Path) -> Session:
    return load(bundle, threads=1)


def make_images(batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 1, SIDE, SIDE), np.float32)


def expect_logits(images: np.ndarray) -> np.ndarray:
    columns = images.sum(axis=(1, 2)) * 9 / SIDE
    return np.stack([columns[:, 0] + columns[:, 1], columns[:, 2], columns[:, 3]], axis=1)


def test_run_gives_the_graphs_numbers_for_every_batch(session: Session) -> None:
    for batch in (1, 2, 3, 4):
        images = make_images(batch, seed=batch)
        outputs = session.run({"image": images})
        assert list(outputs) == ["logits"]
        assert np.abs(outputs["logits"] - expect_logits(images)).max() < 1e-5


def test_arrays_that_are_not_contiguous_are_taken_as_they_look(session: Session) -> None:
    images = np.ascontiguousarray(make_images(2).transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not images.flags.c_contiguous
    assert np.abs(session.run({"image": images})["logits"] - expect_logits(images)).max() < 1e-5


def test_outputs_chooses_by_name(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    feed = {"token_ids": np.array([[1, 2]]), "lengths": np.array([2])}
    assert list(session.graphs["decoder.prefill"].run(feed, ["keys_1", "logits"])) == ["keys_1", "logits"]
    with pytest.raises(InputError) as caught:
        session.graphs["decoder.prefill"].run(feed, ["logit"])
    assert str(caught.value) == (
        "unknown output 'logit'\n"
        "  where:   graph 'decoder.prefill'\n"
        "  allowed: keys_0, keys_1, logits, values_0, values_1 (did you mean 'logits'?)\n"
        "  fix:     ask for outputs of this graph, or leave `outputs` away for all"
    )


def test_several_graphs_must_be_run_by_name(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    with pytest.raises(InputError, match=r"session\.graphs\['decoder\.prefill'\]\.run"):
        session.run({})


def test_outputs_stay_what_they_were_after_the_next_run(session: Session) -> None:
    first = session.run({"image": make_images(seed=1)})["logits"]
    kept = first.copy()
    session.run({"image": make_images(seed=2)})
    assert (first == kept).all()


def test_threads_may_share_a_session(session: Session) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(50):
            images = make_images(1 + (seed + step) % 4, seed)
            if np.abs(session.run({"image": images})["logits"] - expect_logits(images)).max() > 1e-5:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nan_is_data_on_the_way_in_and_found_on_the_way_out_when_asked(session: Session) -> None:
    images = make_images(2)
    images[1, 0, 0, 0] = np.nan
    assert np.isnan(session.run({"image": images})["logits"]).sum() == CLASSES
    with pytest.raises(ParityError) as caught:
        session.run({"image": images}, check_finite=True)
    assert "output 'logits' holds NaN or Inf" in str(caught.value)
    assert f"{CLASSES} of {2 * CLASSES} elements" in str(caught.value)


def test_a_closed_session_says_so(bundle: Path) -> None:
    with load(bundle, threads=1) as session:
        pass
    session.close()
    with pytest.raises(InputError, match="this session is closed"):
        session.run({"image": make_images()})


def test_every_part_of_an_input_error(session: Session) -> None:
    with pytest.raises(InputError) as caught:
        session.run({"image": np.zeros((9, 1, SIDE, SIDE), np.float32)})
    assert str(caught.value) == (
        "input 'image' has the wrong size on axis 0\n"
        "  where:   graph 'classifier'\n"
        "  got:     [9, 1, 4, 4]\n"
        "  allowed: float32 [batch, 1, 4, 4], batch 1..4\n"
        "  fix:     keep 'batch' in 1..4, or export with --dim batch=1:2:9"
    )


@pytest.mark.parametrize(
    ("feed", "problem", "fix"),
    [
        ({}, "input 'image' is missing", "add 'image', float32 [batch, 1, 4, 4], batch 1..4"),
        ([1], "inputs must be a dict of arrays by name", "run({'image': array})"),
        ({"image": make_images(), "mask": make_images()}, "unknown input 'mask'", "remove 'mask'"),
        ({"image": [[1.0]]}, "input 'image' is no numpy array", "np.asarray(value, dtype=np.float32)"),
        ({"image": make_images().astype(np.float64)}, "input 'image' has the wrong dtype", "array.astype(np.float32)"),
        ({"image": make_images().astype(">f4")}, "input 'image' has the wrong dtype", "array.astype(np.float32)"),
        ({"image": make_images()[0]}, "input 'image' has the wrong rank", "reshape it"),
        ({"image": make_images()[..., None]}, "input 'image' has the wrong rank", None),
        ({"image": np.zeros((1, 1, 4, 5), np.float32)}, "input 'image' has the wrong size on axis 3", "4 long"),
        ({"image": make_images()[:0]}, "input 'image' has the wrong size on axis 0", "keep 'batch' in 1..4"),
    ],
)
def test_what_a_graph_does_not_take_is_refused(session: Session, feed: object, problem: str, fix: str | None) -> None:
    for _ in range(2):  # a refused feed is not remembered as a good one
        with pytest.raises(InputError) as caught:
            session.run(feed)  # type: ignore[arg-type]
        assert caught.value.problem == problem
        assert caught.value.allowed
        assert (fix or "") in (caught.value.fix or "")


def test_a_shape_that_was_seen_excuses_nothing_else(session: Session) -> None:
    images = make_images()
    session.run({"image": images})
    with pytest.raises(InputError, match="wrong dtype"):
        session.run({"image": images.astype(np.int32)})
    with pytest.raises(InputError, match="unknown input 'extra'"):
        session.run({"image": images, "extra": images})

    class Lookalike:  # another library's array may have a numpy dtype and a shape, and lie on another device
        dtype, shape = images.dtype, images.shape

    with pytest.raises(InputError, match="is no numpy array"):
        session.run({"image": Lookalike()})  # type: ignore[dict-item]


def test_a_dim_means_one_size_in_every_input(tmp_path: Path) -> None:
    session = load(write_decoder(tmp_path / "d.bundle", make_weights()), threads=1)
    with pytest.raises(InputError) as caught:
        session.graphs["decoder.prefill"].run({"token_ids": np.zeros((2, 3), np.int64), "lengths": np.array([3])})
    assert caught.value.problem == "dim 'batch' has two sizes"
    assert caught.value.got == "2 in 'token_ids', 1 in 'lengths'"


def test_what_the_backend_refuses_is_an_input_error_with_its_cause(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n] a, float[m] b) => (float[k] c) { c = Add (a, b) }'
    )
    folder = write_bundle(tmp_path / "b.bundle", {"m": model}, pipeline={"kind": "tensors", "graph": "m"}, dims={})
    session = load(folder, threads=1)
    with pytest.raises(InputError) as caught:
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    assert caught.value.problem == "onnxruntime-cpu could not run these inputs"
    assert caught.value.got is not None
    assert caught.value.got.startswith("a [2], b [3]; the backend says: ")
    assert caught.value.__cause__ is not None
    with pytest.raises(InputError) as caught:  # a named size without a range is described too
        session.run({"a": np.zeros((2, 1), np.float32), "b": np.zeros(2, np.float32)})
    assert "float32 [n]" in str(caught.value)


def test_no_range_without_anything_is_proposed(tmp_path: Path) -> None:
    session = load(write_classifier(tmp_path / "c.bundle"), threads=1)
    with pytest.raises(InputError) as caught:
        session.run({"image": np.zeros((0, 1, 4, 4), np.float32)})
    assert caught.value.fix == "keep 'batch' in 1..4"


def test_values_that_are_not_finite_are_summarised_in_silence(tmp_path: Path) -> None:
    session = load(write_classifier(tmp_path / "c.bundle"), threads=1)
    image = np.zeros((2, 1, 4, 4), np.float32)
    image[0, 0, 0, 0], image[1, 0, 0, 0] = np.inf, -np.inf
    np.savez(tmp_path / "i.npz", image=image)
    found = answer(session, Request(files=(str(tmp_path / "i.npz"),)))  # numpy's warnings are errors here
    assert None in found.rows[0]


def test_run_costs_microseconds(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loose bound, for busy machines; benchmarks/RESULTS.md has the figure."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    from bench_session_overhead import measure_overhead_us

    assert measure_overhead_us(pairs=2000)["overhead_us"] < 30
