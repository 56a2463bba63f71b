"""The plugins' faces, driven as TensorRT drives them, with every TensorRT whose headers are here; kernels on the host.

`METAGEN_TENSORRT_HEADERS` lists include folders; each is a TensorRT of its own. Answers are compared with torch.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.engines.plugins.kernels_on_host import compile_for_host

_HEADERS = [path for path in os.environ.get("METAGEN_TENSORRT_HEADERS", "").split(os.pathsep) if path]
_FILES = (
    "grid_sample/sample_planes.cu", "grid_sample/sample_voxels.cu", "grid_sample/grid_sample_3d.cpp",
    "step/multiply_columns.cu", "step/multiply_lines.cu", "step/step_attention.cu", "step/step_linear.cpp",
    "library.cpp",
)  # fmt: skip
#: torch's type -> nvinfer1::DataType.
_TYPES = {torch.float32: 0, torch.float16: 1, torch.int32: 3, torch.int64: 8}
_CHAR, _INT32, _FLOAT32 = 6, 5, 1  # nvinfer1::PluginFieldType
_WORKSPACE = 1 << 20
_STEPS = ("", "creator", "attributes", "outputs", "types", "shapes", "serialisation", "workspace", "kernel")


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class _Face:
    """One TensorRT's face of every plugin."""

    def __init__(self, folder: Path, headers: str) -> None:
        driver = str(Path(__file__).parent / "faces_on_host.cpp")
        self.library = compile_for_host(folder, (*_FILES, driver), include=headers, together=True)
        version = (Path(headers) / "NvInferVersion.h").read_text()
        found = re.search(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +(\d+)", version)
        assert found is not None
        self.major = int(found[1])
        size = ctypes.c_int32 if self.major < 10 else ctypes.c_int64

        class Dims(ctypes.Structure):
            _fields_ = (("nbDims", ctypes.c_int32), ("d", size * 8))

        class Desc(ctypes.Structure):
            _fields_ = (("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))

        self._dims, self._desc = Dims, Desc

    def run(
        self,
        name: str,
        attributes: Mapping[str, int | float | str],
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Sequence[torch.Tensor]:
        """Fills `outputs`, whose shapes and types are what the plugin shall say."""
        fields, held = (_Field * len(attributes))(), []
        for field, (key, value) in zip(fields, attributes.items(), strict=True):
            kind, stored = self._store(value)
            held.append(stored)
            length = len(value) if isinstance(value, str) else 1
            field.name, field.data = key.encode(), ctypes.cast(ctypes.pointer(stored), ctypes.c_void_p)
            field.type, field.length = kind, length
        tensors = (self._desc * (len(inputs) + len(outputs)))()
        for described, tensor in zip(tensors, (*inputs, *outputs), strict=True):
            described.dims.nbDims, described.type = tensor.dim(), _TYPES[tensor.dtype]
            for axis, size in enumerate(tensor.shape):
                described.dims.d[axis] = size
        data, results = (
            (ctypes.c_void_p * len(group))(*(tensor.data_ptr() for tensor in group)) for group in (inputs, outputs)
        )
        step = self.library.drive(
            name.encode(), fields, len(attributes), tensors, len(inputs), len(outputs), data, results,
            ctypes.c_size_t(_WORKSPACE),
        )  # fmt: skip
        assert step == 0, f"{name}: {_STEPS[step]}"
        return outputs

    @staticmethod
    def _store(value: int | float | str) -> tuple[int, ctypes.Array[ctypes.c_char] | ctypes.c_int32 | ctypes.c_float]:
        if isinstance(value, str):
            return _CHAR, ctypes.create_string_buffer(value.encode())
        return (_INT32, ctypes.c_int32(value)) if isinstance(value, int) else (_FLOAT32, ctypes.c_float(value))


@pytest.fixture(scope="module", params=_HEADERS or [None])
def face(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Face:
    if request.param is None:
        pytest.skip("METAGEN_TENSORRT_HEADERS lists no include folder of TensorRT")
    return _Face(tmp_path_factory.mktemp("face"), request.param)


def _draw(*shape: int, half: bool) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.half() if half else values


def _linear(half: bool, **changed: int | float | str) -> dict[str, int | float | str]:
    given = {
        "weights": 1,
        "transposed": 0,
        "norm": 0,
        "bias": 0,
        "residual": 0,
        "half": int(half),
        "gate": "none",
        "epsilon": 0.0,
    }
    return given | changed


@pytest.mark.parametrize("half", [False, True])
def test_a_linear_with_all_around_it(face: _Face, half: bool) -> None:
    x, weight, norm = _draw(2, 1, 32, half=half), _draw(32, 24, half=half), _draw(32, half=half)
    bias, residual = _draw(24, half=half), _draw(2, 1, 24, half=half)
    attributes = _linear(half, norm=1, bias=1, residual=1, epsilon=0.5)
    (out,) = face.run("MetagenStepLinear", attributes, (x, weight, norm, bias, residual), (torch.empty_like(residual),))
    normed = functional.rms_norm(x.float(), (32,), norm.float(), 0.5)
    wanted = normed @ weight.float() + bias.float() + residual.float()
    assert torch.allclose(out.float(), wanted, atol=2e-2 if half else 1e-5)


def test_three_matrices_and_a_gate(face: _Face) -> None:
    x, weights = _draw(3, 1, 16, half=False), [_draw(16, n, half=False) for n in (24, 8, 8)]
    outs = face.run(
        "MetagenStepLinear", _linear(False, weights=3), (x, *weights), [x.new_empty(3, 1, n) for n in (24, 8, 8)]
    )
    assert all(torch.allclose(out, x @ weight, atol=1e-5) for out, weight in zip(outs, weights, strict=True))
    attributes = _linear(False, weights=2, gate="silu")
    (out,) = face.run("MetagenStepLinear", attributes, (x, *weights[1:]), (x.new_empty(3, 1, 8),))
    assert torch.allclose(out, functional.silu(x @ weights[1]) * (x @ weights[2]), atol=1e-5)


def test_matrices_that_lie_transposed(face: _Face) -> None:
    x, weights = _draw(3, 1, 16, half=True), [_draw(n, 16, half=True) for n in (24, 5)]
    attributes = _linear(True, weights=2, transposed=1)
    outs = face.run("MetagenStepLinear", attributes, (x, *weights), [x.new_empty(3, 1, n) for n in (24, 5)])
    for out, weight in zip(outs, weights, strict=True):
        assert torch.allclose(out.float(), x.float() @ weight.float().T, atol=2e-2)


@pytest.mark.parametrize("half", [False, True])
def test_attention_of_a_step(face: _Face, half: bool) -> None:
    q, k, v = _draw(2, 1, 4 * 8, half=half), _draw(2, 1, 2 * 8, half=half), _draw(2, 1, 2 * 8, half=half)
    past = [_draw(2, 2, 20, 8, half=False) for _ in range(2)]
    start = torch.tensor([3, 19], dtype=torch.int32 if face.major < 10 else torch.int64)
    turn = [torch.ones(2, 1, 1, 4), torch.zeros(2, 1, 1, 4)]
    attributes = {"scale": 0.25, "softcap": 0.0, "groups": 2, "window": 0, "rotary": 1, "half": int(half)}
    outputs = (torch.empty_like(q), *(torch.empty_like(one) for one in past))
    out, keys, values = face.run("MetagenStepAttention", attributes, (q, k, v, *past, start, *turn), outputs)
    for new, old, cache in ((k, past[0], keys), (v, past[1], values)):
        old = old.clone()
        for row, slot in enumerate(start.tolist()):
            old[row, :, slot] = new[row].float().reshape(2, 8)
        assert torch.equal(cache, old)
    mask = torch.arange(20) <= start[:, None, None, None]
    wanted = functional.scaled_dot_product_attention(
        q.float().reshape(2, 4, 1, 8), keys, values, attn_mask=mask, scale=0.25, enable_gqa=True
    )
    assert torch.allclose(out.float().reshape(2, 4, 8), wanted[:, :, 0], atol=2e-3 if half else 1e-5)


def test_a_volume_is_sampled(face: _Face) -> None:
    x, grid = _draw(1, 3, 4, 5, 6, half=False), _draw(1, 2, 3, 4, 3, half=False)
    attributes = {"mode": "bilinear", "padding_mode": "border", "align_corners": 0}
    (out,) = face.run("MetagenGridSample3D", attributes, (x, grid), (x.new_empty(1, 3, 2, 3, 4),))
    wanted = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert torch.allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "changed", [{"gate": "relu"}, {"weights": 4}, {"weights": 2, "residual": 1}, {"gate": "silu"}], ids=str
)
def test_attributes_that_mean_nothing_are_refused(face: _Face, changed: dict[str, int | str]) -> None:
    x, weight = _draw(1, 16, half=False), _draw(16, 8, half=False)
    with pytest.raises(AssertionError, match="MetagenStepLinear: attributes"):
        face.run("MetagenStepLinear", _linear(False, **changed), (x, weight), (x.new_empty(1, 8),))


def test_a_wrong_type_or_shape_is_noticed(face: _Face) -> None:
    x, weight = _draw(1, 16, half=False), _draw(16, 8, half=False)
    with pytest.raises(AssertionError, match="MetagenStepLinear: types"):
        face.run("MetagenStepLinear", _linear(True), (x, weight), (x.new_empty(1, 8),))
    with pytest.raises(AssertionError, match="MetagenStepLinear: shapes"):
        face.run("MetagenStepLinear", _linear(False), (x, weight), (x.new_empty(1, 9),))
    q, past = _draw(1, 1, 16, half=False), _draw(1, 2, 20, 8, half=False)
    start = torch.tensor([3], dtype=torch.int32 if face.major < 10 else torch.int64)
    attributes = {"scale": 0.25, "softcap": 0.0, "groups": 2, "window": 0, "rotary": 0, "half": 0}
    with pytest.raises(AssertionError, match="MetagenStepAttention: kernel"):  # two groups ask for 32 elements of q
        face.run(
            "MetagenStepAttention", attributes, (q, q, q, past, past, start), (q.clone(), past.clone(), past.clone())
        )
