"""Decisions of the compiler process that need no compiler, over stand-ins with TensorRT's names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.backends.trt import worker
from engines.backends.trt.compiler import note_widened
from engines.backends.trt.versions import Decisions

FLOAT, HALF, INT = "float32", "float16", "int32"
TRT: Any = SimpleNamespace(
    float32=FLOAT, float16=HALF, TacticSource=SimpleNamespace(CUBLAS=0, CUBLAS_LT=1, CUDNN=2, JIT_CONVOLUTIONS=4)
)
DECISIONS = Decisions(network_flags=(), builder_flags=(), strongly_typed=False, ahead_of_time=False, timing_cache=True)


class Config:
    """The part of IBuilderConfig that is looked at."""

    def __init__(self, sources: int = 0b10111, accepted: tuple[bytes, ...] = (b"",)) -> None:
        self.sources, self.accepted, self.cache = sources, accepted, b"none"

    def get_tactic_sources(self) -> int:
        return self.sources

    def set_tactic_sources(self, sources: int) -> bool:
        self.sources = sources
        return True

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content == b"unreadable" else content

    def set_timing_cache(self, cache: bytes, ignore: bool) -> bool:
        if cache not in self.accepted:
            return False
        self.cache = cache
        return True


@pytest.mark.parametrize(
    ("present", "left", "note"),
    [
        ({"cublasCreate_v2", "cublasLtCreate", "cudnnCreate"}, 0b10111, None),
        ({"cublasCreate_v2", "cublasLtCreate"}, 0b10011, "CUDNN"),
        (set(), 0b10000, "CUBLAS, CUBLAS_LT, CUDNN"),
    ],
)
def test_kernels_of_libraries_that_are_missing_are_left_out(
    present: set[str], left: int, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_find_function", lambda libraries, function: function in present)
    config = Config()
    notes = worker._limit_tactics(TRT, config)
    assert config.sources == left
    assert notes == ([f"kernels of {note} are left out: their libraries are not on this machine"] if note else [])


def test_sources_that_are_off_already_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_find_function", lambda libraries, function: pytest.fail(function))
    config = Config(sources=0b10000)  # what 10.x starts with
    assert worker._limit_tactics(TRT, config) == [] and config.sources == 0b10000


def test_a_library_without_its_function_is_a_stand_in() -> None:
    assert worker._find_function(("libnothing.so.1", "libc.so.6"), "malloc")
    assert not worker._find_function(("libnothing.so.1", "libc.so.6"), "cublasCreate_v2")


def test_profiles_are_shared_where_a_version_has_to_be_told() -> None:
    told: list[tuple[str, bool]] = []
    config = SimpleNamespace(set_preview_feature=lambda feature, on: told.append((feature, on)))
    worker._share_profiles(SimpleNamespace(PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing")), config)
    worker._share_profiles(SimpleNamespace(PreviewFeature=SimpleNamespace()), config)
    worker._share_profiles(SimpleNamespace(), config)
    assert told == [("sharing", True)]


class Layer:
    def __init__(self, name: str, kind: str, *dtypes: str) -> None:
        self.name, self.type, self._dtypes = name, SimpleNamespace(name=kind), dtypes
        self.precision, self.outputs = "", dict[int, str]()
        self.num_outputs = len(dtypes)

    def get_output(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(dtype=self._dtypes[index])

    def set_output_type(self, index: int, dtype: str) -> None:
        self.outputs[index] = dtype


def test_only_layers_that_give_floats_are_kept_in_fp32() -> None:
    """An integer or a boolean result has no precision to constrain: the kept comparisons of a mask give those."""
    layers = [
        Layer("pow", "ELEMENTWISE", HALF),
        Layer("compare", "ELEMENTWISE", INT),
        Layer("top", "TOPK", FLOAT, INT),
        Layer("cast", "CAST", FLOAT),
        Layer("other", "ELEMENTWISE", HALF),
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    worker._keep_fp32(TRT, network, {"pow", "compare", "top", "cast"})
    assert [(layer.precision, layer.outputs) for layer in layers] == [
        (FLOAT, {0: FLOAT}), ("", {}), (FLOAT, {0: FLOAT}), ("", {}), ("", {}),
    ]  # fmt: skip


def test_int64_that_became_int32_is_said() -> None:
    def tensor(name: str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, dtype=SimpleNamespace(name=kind))

    inputs, outputs = [tensor("ids", "INT32"), tensor("flags", "INT32")], [tensor("best", "INT64")]
    network = SimpleNamespace(num_inputs=2, get_input=inputs.__getitem__, num_outputs=1, get_output=outputs.__getitem__)
    assert worker._note_narrowed(network, ["ids", "best"]) == [
        "this compiler has no int64: ids are int32 in the engine"
    ]
    assert worker._note_narrowed(network, []) == []


@pytest.mark.parametrize(
    ("stored", "kept"),
    [(b"good", b"good"), (b"of another GPU", b""), (b"unreadable", b""), (None, b"")],
)
def test_a_timing_cache_that_does_not_fit_is_replaced_by_an_empty_one(
    stored: bytes | None, kept: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "t.cache"
    if stored is not None:
        path.write_bytes(stored)
    config = Config(accepted=(b"", b"good"))
    assert worker._load_timing_cache(config, DECISIONS, str(path))
    assert config.cache == kept
    assert not worker._load_timing_cache(Config(), DECISIONS, None)


def test_a_compiler_that_does_not_start_is_a_failure_with_words() -> None:
    def refuse(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(worker._Failure, match="the compiler did not start: is there a GPU and its driver?"):
        worker._start_builder(SimpleNamespace(Builder=refuse), None)


@pytest.mark.parametrize(
    ("precision", "weights", "engine", "said"),
    [
        ("fp16", 101e6, 203e6, True),
        ("fp16", 101e6, 120e6, False),  # half weights, and code
        ("fp32", 101e6, 203e6, False),
        ("fp16", 1e6, 9e6, False),  # an engine of nothing but code
    ],
)
def test_an_engine_that_holds_float32_is_said(precision: str, weights: float, engine: float, said: bool) -> None:
    graph: Any = SimpleNamespace(walk_weights=lambda: [SimpleNamespace(nbytes=int(weights))])
    words = "the compiler chose float32 kernels for most of it: the engine holds 203 MB for 101 MB of weights"
    assert note_widened(precision, graph, int(engine)) == ((words,) if said else ())
