"""Numbers that have the right type and no sense: refused where they stand, and not hours later as NaN or no memory."""

from __future__ import annotations

from typing import Any

import pytest

from specs.document import dump_document, parse_document
from specs.errors import SpecError
from specs.load import dump_spec, load_spec
from specs.parsing.parse import parse_spec

BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("text_llm_tiny", "decoder", {"head_dim": 10**12}, "head_dim cannot be the number 1000000000000"),
    ("text_llm_tiny", "decoder", {"rope_theta": 1e-30}, "rope_theta cannot be the number 1e-30"),
    ("text_llm_tiny", "decoder", {"rope_scaling": {"kind": "linear", "factor": 1e-300}}, "factor cannot be the number"),
    (
        "text_llm_tiny",
        "decoder",
        {
            "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_positions": 8}
            | {"low_freq_factor": 4.0, "high_freq_factor": 1.0}
        },
        "low_freq_factor 4.0 is above high_freq_factor 1.0",
    ),
    ("audio_whisper_tiny", "encoder", {"fft_length": 2}, "fft_length is shorter than hop_length, so samples would be"),
    ("video_realtime_avatar", "appearance", {"temperature": 1e-300}, "temperature cannot be the number 1e-300"),
    ("multimodal_sensor_fusion", "lidar", {"range_m": 1e300}, "range_m cannot be the number 1e+300"),
    ("image_diffusion_small", "scheduler", {"steps_offset": 10**9}, "steps_offset 1000000000 leaves no timestep of"),
    ("image_diffusion_small", "scheduler", {"guidance_scale": 1e300}, "guidance_scale cannot be the number 1e+300"),
    ("image_diffusion_small", "unet", {"mid_block_scale_factor": 1e-300}, "mid_block_scale_factor cannot be the"),
    ("image_captioning", "projector", {"image_token": 10**9}, "the image token is outside the decoder's vocabulary"),
    ("image_captioning", "projector", {"skip_tokens": 10**9}, "the projector leaves every token of the tower away"),
]


@pytest.mark.parametrize(("name", "component", "changes", "words"), BAD, ids=lambda v: next(iter(v), "") if v else "")
def test_a_number_without_sense(name: str, component: str, changes: dict[str, Any], words: str) -> None:
    text = dump_spec(load_spec(name, variant="tiny"))
    data: dict[str, Any] = parse_document(text, source="good").data
    data["components"][component] |= changes
    text = dump_document(data)
    line = 1 + next(i for i, row in enumerate(text.split("\n")) if f"{next(iter(changes))}:" in row)
    with pytest.raises(SpecError) as caught:
        parse_spec(text, source="my.yaml")
    assert words in caught.value.problem
    assert caught.value.fix
    assert caught.value.where in (f"my.yaml:{line}", f"my.yaml:{line + 1}")
