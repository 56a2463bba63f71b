"""EnCodec against transformers: samples to codes to samples, every option of its networks, any length, any bit rate."""

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

from engines.runtime import Request, Sound
from engines.runtime.pipelines import AudioCodec
from exporters.checkpoints import encodec, open_checkpoint, read_spec
from exporters.checkpoints.files import weight_norm
from specs.errors import InputError, MetagenError
from specs.graphs import count_parameters
from specs.handlers import get_handler
from specs.models.audio import seanet
from specs.parsing.parse import parse_spec
from tests.checkpoints.compare import Array, compare, enliven, record_tokens
from tests.checkpoints.speech import Run, build, open_loop, run_onnx, run_torch, write_wav
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


def compare_vectors(folder: Path, case: str, stage: str, run: Run) -> None:
    """Lengths that the ratios divide, and lengths that they do not."""
    codec: Any = read_spec(folder).components["codec"]
    models = [hf.EncodecModel.from_pretrained(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.float64)]
    for length in (2 * codec.hop_length, 2 * codec.hop_length + 1, 37, 64, 101):
        samples = draw_samples(folder, length)
        with torch.no_grad():
            fp32, fp64 = (model.encoder(torch.from_numpy(samples).to(model.dtype)) for model in models)
        compare(FAMILY, f"{case}, {length} samples", stage, "vectors", run({"samples": samples})[0], fp32, fp64)


def draw_samples(folder: Path, length: int) -> Array:
    codec: Any = read_spec(folder).components["codec"]
    noise = np.random.default_rng(length).standard_normal((2, codec.audio_channels, length))
    return (0.3 * noise).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_torch_equals_the_library(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", **CASES[case])
    spec, graphs = build(folder)
    compare_samples(folder, case, "torch", run_torch(graphs["codec.decode"]))
    compare_vectors(folder, case, "torch", run_torch(graphs["codec.encode"]))
    for graph in graphs.values():
        assert sum(p.numel() for p in graph.module.parameters()) == count_parameters(spec)["codec"]


@pytest.mark.parametrize("case", ["24-khz", "48-khz-stereo"])
def test_onnx_equals_the_library(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "codec", **CASES[case])
    spec, graphs = build(folder)
    runs = {name: run_onnx(spec, graph, tmp_path) for name, graph in graphs.items()}
    compare_samples(folder, case, "onnx", runs["codec.decode"])
    compare_vectors(folder, case, "onnx", runs["codec.encode"])
    compare_codes(folder, case, open_loop(spec, graphs, runs, tmp_path))


def compare_codes(folder: Path, case: str, loop: AudioCodec) -> None:
    """At every bit rate, of a sound whose length no ratio divides."""
    model = hf.EncodecModel.from_pretrained(folder).eval()
    samples = draw_samples(folder, 203)
    for bandwidth in model.config.target_bandwidths:
        with torch.no_grad():
            theirs = model.encode(torch.from_numpy(samples), bandwidth=bandwidth).audio_codes[0].numpy()
        ours = loop.encode(samples, codebooks=theirs.shape[1])
        record_tokens(FAMILY, f"{case}, {bandwidth} kbit/s", ours, theirs)
    with pytest.raises(InputError, match="there are not so many codebooks"):
        loop.encode(samples, codebooks=99)


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


def test_a_sound_goes_through(tmp_path: Path) -> None:
    """A file in, what the codec leaves of it out; a sound shorter than a graph takes is filled with silence."""
    folder = save(tmp_path / "codec", **CASES["48-khz-stereo"])
    spec, graphs = build(folder)
    loop: AudioCodec = open_loop(spec, graphs, {name: run_torch(graph) for name, graph in graphs.items()}, tmp_path)
    sound = write_wav(tmp_path / "a.wav", draw_samples(folder, 5000)[0], 48000)  # resampled to 400 Hz
    answer = loop.answer(Request(files=(str(sound),)))
    assert answer is not None
    assert answer.rows == ((str(sound), 0.105, 5, 5),)
    (heard,) = answer.media
    assert isinstance(heard, Sound)
    assert (heard.samples.shape, heard.sample_rate_hz) == ((2, 42), 400)
    assert loop.encode(np.ones((1, 2, 3), np.float32)).shape == (1, 5, 2)


def test_a_decoder_alone_takes_no_sound() -> None:
    spec = parse_spec(DECODER_ALONE, source="test")
    (graph,) = get_handler(spec).build(spec)
    loop: AudioCodec = open_loop(spec, {graph.name: graph}, {graph.name: run_torch(graph)}, Path())
    assert loop.answer(Request(files=("a.wav",))) is None
    assert loop.decode(np.zeros((1, 2, 3), np.int64)).shape == (1, 1, 60)
    with pytest.raises(InputError, match="makes sound of codes, and no codes of sound"):
        loop.encode(np.zeros((1, 1, 99), np.float32))


DECODER_ALONE = """
name: half
modality: {inputs: [audio], outputs: [audio]}
architecture: hybrid
objective: reconstruction
components:
  codec: {kind: audio.encodec_decoder, num_codebooks: 2, codebook_size: 8, num_filters: 4, upsampling_ratios: [5, 4]}
dims: {codebooks: {min: 1, opt: 2, max: 2}}
"""


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ("codebooks: {min: 1, opt: 2, max: 3}", "dims.codebooks.max 3 is more than the codec has"),
        (
            "codebooks: {min: 1, opt: 2, max: 2}, samples: {min: 20, opt: 40, max: 80}",
            "dims.samples.min 20 is no more than a frame",
        ),
    ],
)
def test_dims_that_the_codec_does_not_have(dims: str, words: str) -> None:
    text = DECODER_ALONE.replace("audio.encodec_decoder", "audio.encodec").split("dims:")[0]
    with pytest.raises(MetagenError, match=words):
        parse_spec(f"{text}dims: {{{dims}}}\n", source="test")


def _swap_gates(*parts: Tensor) -> Tensor:
    return torch.cat([part.chunk(4)[index] for part in parts for index in (0, 1, 3, 2)])


def _forget_lengths(length: Tensor, direction: Tensor) -> Tensor:
    return direction + 0 * length


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "gate-order": (encodec, "reorder_gates", _swap_gates),
    "weight-norm": (weight_norm, "fold_weight_norm", _forget_lengths),
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
    assert not any(name.startswith(("decoder.", "encoder.")) for name in unused)
