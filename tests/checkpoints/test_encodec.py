"""EnCodec against transformers: codes to samples, every option of its networks, any number of frames and codebooks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from exporters.checkpoints import encodec, open_checkpoint, read_spec
from specs.errors import MetagenError
from specs.graphs import count_parameters
from specs.models import seanet
from tests.checkpoints.compare import Array, compare, enliven
from tests.checkpoints.speech import Run, build, run_onnx, run_torch
from tests.checkpoints.support import edit_config

FAMILY = "EnCodec"
#: Little of everything: 10 samples a frame, 5 codebooks of 32 codes.
SIZES: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 12,
    "upsampling_ratios": [5, 2],
    "codebook_size": 32,
    "target_bandwidths": [0.5, 1.0],
    "sampling_rate": 400,
}
CASES: dict[str, dict[str, Any]] = {
    "24-khz": {},
    "musicgen": {"use_causal_conv": False, "use_conv_shortcut": False},
    "48-khz-stereo": {"use_causal_conv": False, "audio_channels": 2, "norm_type": "time_group_norm"},
    "dilated": {
        "use_causal_conv": False,
        "num_residual_layers": 2,
        "dilation_growth_rate": 3,
        "compress": 1,
        "num_lstm_layers": 1,
        "upsampling_ratios": [3, 2],
    },
    "even-kernels": {"kernel_size": 8, "last_kernel_size": 4, "residual_kernel_size": 4, "use_causal_conv": False},
    "trimmed-both-sides": {"trim_right_ratio": 0.3, "num_lstm_layers": 3, "upsampling_ratios": [5]},
    "zeros": {"pad_mode": "constant", "codebook_size": 16},
    "replicated": {"pad_mode": "replicate", "use_causal_conv": False, "num_residual_layers": 0},
}
#: 1 frame is shorter than every border of the first convolution, 20 longer.
FRAMES = (1, 2, 3, 4, 7, 20)


def make_model(**options: Any) -> hf.EncodecModel:
    model = hf.EncodecModel(hf.EncodecConfig(**{**SIZES, **options}))
    generator = torch.Generator().manual_seed(1)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(generator=generator)
    enliven(model)
    return model


def save(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    make_model(**options).to(dtype).save_pretrained(folder)
    return folder


def decode(model: hf.EncodecModel, codes: Array) -> Tensor:
    """[B, Q, F] -> [B, C, L], by the library."""
    with torch.no_grad():
        return model.decode(torch.from_numpy(codes)[None], [None]).audio_values


def draw_codes(folder: Path, frames: int, *, codebooks: int | None = None, seed: int = 0) -> Array:
    codec: Any = read_spec(folder).components["codec"]
    shape = (2, codebooks or codec.num_codebooks, frames)
    return np.random.default_rng(seed).integers(0, codec.codebook_size, shape)


def compare_samples(folder: Path, case: str, stage: str, run: Run) -> None:
    codec: Any = read_spec(folder).components["codec"]
    models = [hf.EncodecModel.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.float64)]
    for frames in FRAMES:
        for codebooks in sorted({1, codec.num_codebooks}):
            codes = draw_codes(folder, frames, codebooks=codebooks, seed=frames)
            fp32, fp64 = (decode(model, codes) for model in models)
            name = f"{case}, {frames} frames of {codebooks}"
            compare(FAMILY, name, stage, "samples", run({"codes": codes})[0], fp32, fp64)


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_the_library(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", **CASES[case])
    spec, graphs = build(folder)
    compare_samples(folder, case, "torch", run_torch(graphs["codec.decode"]))
    assert sum(p.numel() for p in graphs["codec.decode"].module.parameters()) == count_parameters(spec)["codec"]


@pytest.mark.parametrize("case", ["24-khz", "dilated", "48-khz-stereo"])
def test_onnx_equals_the_library(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", **CASES[case])
    spec, graphs = build(folder)
    compare_samples(folder, case, "onnx", run_onnx(spec, graphs["codec.decode"], tmp_path))


def test_weight_norm_of_older_versions(tmp_path: Path) -> None:
    """weight_g and weight_v, as torch called them before parametrizations."""
    folder = save(tmp_path / "codec")
    path = folder / "model.safetensors"
    tensors = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in load_file(path).items()
    }
    fresh = run_torch(build(folder)[1]["codec.decode"])
    save_file(tensors, path, metadata={"format": "pt"})
    codes = draw_codes(folder, 7)
    np.testing.assert_array_equal(
        run_torch(build(folder)[1]["codec.decode"])({"codes": codes})[0], fresh({"codes": codes})[0]
    )


def test_bfloat16(tmp_path: Path) -> None:
    """The factors of a weight norm keep what they have: their product is not rounded again."""
    folder = save(tmp_path / "codec", dtype=torch.bfloat16)
    compare_samples(folder, "bfloat16", "torch", run_torch(build(folder)[1]["codec.decode"]))


def test_config_of_an_older_version(tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", sampling_rate=24000, target_bandwidths=[12000.0], upsampling_ratios=[5, 4])
    spec = read_spec(folder)
    changes = {"codebook_dim": None, "audio_channels": None, "trim_right_ratio": 1, "torch_dtype": "float32"}
    edit_config(folder, **changes, dtype=None, use_conv_shortcut=None, pad_mode=None)
    assert read_spec(folder) == spec


def _swap_gates(*parts: Tensor) -> Tensor:
    return torch.cat([part.chunk(4)[index] for part in parts for index in (0, 1, 3, 2)])


def _forget_lengths(length: Tensor, direction: Tensor) -> Tensor:
    return direction + 0 * length


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "gate-order": (encodec, "reorder_gates", _swap_gates),
    "weight-norm": (encodec, "fold_weight_norm", _forget_lengths),
    "leaky-relu": (seanet.functional, "elu", nn.functional.leaky_relu),
    "zeros-not-reflected": (
        seanet,
        "pad_reflect_any",
        lambda x, left, right: nn.functional.pad(x, (left, right)),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "codec", **CASES["musicgen"])
    where, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match="more than"):
        compare_samples(folder, mutant, "torch", run_torch(build(folder)[1]["codec.decode"]))


def test_the_comparison_notices_the_wrong_side_cut(tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", **CASES["trimmed-both-sides"])
    graph = build(folder)[1]["codec.decode"]
    module = copy.deepcopy(graph.module)
    for part in module.modules():
        if isinstance(part, seanet.TransposedConvolution):
            part.left, part.right = part.right, part.left
    wrong = type(graph)(**{**graph.__dict__, "module": module})
    with pytest.raises(AssertionError, match="more than"):
        compare_samples(folder, "cut", "torch", run_torch(wrong))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "normalised": ({"normalize": True}, "'normalize' is True in the checkpoint's config, which is not implemented"),
    "chunked": ({"chunk_length_s": 1.0}, "'chunk_length_s' is 1.0"),
    "codes-of-another-width": ({"codebook_dim": 16}, "'codebook_dim' is 16"),
    "circular": ({"pad_mode": "circular"}, "'pad_mode' is 'circular'"),
    "another-norm": ({"norm_type": "layer_norm"}, "'norm_type' is 'layer_norm'"),
    "no-bandwidth": ({"target_bandwidths": []}, "the checkpoint's config does not say how many codebooks there are"),
    "ratio-zero": ({"upsampling_ratios": [5, 0]}, "the checkpoint's config does not say how many codebooks there are"),
    "ratio-is-text": ({"upsampling_ratios": ["5"]}, "the checkpoint's config does not say how many codebooks"),
    "trimmed-not-causal": ({"use_causal_conv": False, "trim_right_ratio": 0.5}, "'trim_right_ratio' is 0.5"),
    "no-filters-left": ({"compress": 64}, "the checkpoint's config contradicts itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**hf.EncodecConfig(**SIZES).to_dict(), **REFUSED[case][0]}))
    with pytest.raises(MetagenError) as caught:
        read_spec(tmp_path)
    assert REFUSED[case][1] in str(caught.value).splitlines()[0]
    assert "config" in str(caught.value)


def test_tensors_that_contradict_the_config(tmp_path: Path) -> None:
    folder = save(tmp_path / "codec")
    edit_config(folder, target_bandwidths=[0.5, 1.2])
    with pytest.raises(MetagenError, match="lacks the tensor 'quantizer.layers.5.codebook.embed'"):
        open_checkpoint(folder)
    edit_config(folder, target_bandwidths=[0.5, 0.8])
    with pytest.raises(MetagenError, match="'quantizer.layers.4.codebook.embed' has no place"):
        open_checkpoint(folder)
    edit_config(folder, target_bandwidths=[0.5, 1.0], num_lstm_layers=3)
    with pytest.raises(MetagenError, match="lacks the tensor 'decoder.layers.1.lstm.weight_ih_l2'"):
        open_checkpoint(folder)


def test_every_tensor_is_used_or_named(tmp_path: Path) -> None:
    unused = open_checkpoint(save(tmp_path / "codec")).unused
    assert {reason for name, reason in unused.items() if "embed_avg" in name} == {"a statistic of training"}
    assert not any(name.startswith("decoder.") for name in unused)
