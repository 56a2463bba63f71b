"""What a spec says of its parts' multiply-accumulates, counted on the modules themselves by torch's own counter."""

from __future__ import annotations

import pytest
import torch

from exporters.golden.run_cost import estimate_cost
from specs import ops
from specs.graphs import count_macs
from specs.handlers import get_handler
from specs.load import load_spec

#: Samples of planes and LSTMs are not among what torch counts, and so not here.
#: Spec -> graph -> the dim whose size `count_macs` takes as `tokens`; none: the part has one size.
EXACT: dict[str, dict[str, str | None]] = {
    "3d_text_to_mesh:tiny": {"text_encoder.model": None, "triplane.model": None},
    "audio_musicgen:tiny": {"text_encoder.model": "text_tokens"},
    "audio_speech:tiny": {"durations.model": "tokens", "flow.model": "frames", "vocoder.model": "frames"},
    "edge_tiny_agent:tiny": {"decoder.prefill": "tokens"},
    "image_captioning:tiny": {"vision.model": None, "projector.model": None, "decoder.prefill": "tokens"},
    "image_cnn_resnet50:tiny": {"classifier.model": None},
    "image_diffusion_sdxl:tiny": {"text_encoder_2.penultimate": None},
    "image_diffusion_small:tiny": {"text_encoder.model": None, "vae.decode": None},
    "image_hybrid_mobilevit:tiny": {"classifier.model": None},
    "image_vit_base:tiny": {"classifier.model": None},
    "image_vit_digits": {"classifier.model": None},
    "multimodal_blocks:tiny": {
        "decoder.prefill": "tokens",
        "structure.head": None,
        "text.head": None,
        "image.head": None,
    },
    "multimodal_clip:tiny": {"image_encoder.model": None, "text_encoder.model": None},
    "multimodal_llm:tiny": {"vision.model": None},
    "multimodal_sensor_fusion:tiny": {"instruction.model": None},
    "text_llm_8b:tiny": {"decoder.prefill": "tokens"},
    "text_llm_tiny:tiny": {"decoder.prefill": "tokens"},
    "video_generation:tiny": {"text_encoder.model": None, "vae.model": None},
    "video_realtime_avatar:tiny": {"renderer.model": None},
    "video_to_text:tiny": {"vision.model": None, "decoder.prefill": "tokens"},
}


@pytest.mark.parametrize("name", EXACT)
def test_multiply_accumulates_are_counted_as_they_are(name: str) -> None:
    spec = load_spec(name)
    handler = get_handler(spec)
    sizes = {dim: size.opt for dim, size in spec.dims.items()} | {"batch": 1}
    sizes |= {"tokens": 7} if "tokens" in sizes else {}
    said, counted = {}, {}
    for graph in handler.build(spec, dtype=torch.float32):
        key = f"{graph.component}.{graph.file_stem}"
        if key in EXACT[name]:
            dim = EXACT[name][key]
            inputs = handler.make_inputs(spec, graph, sizes=sizes, seed=0)
            with ops.open_bodies():
                counted[key] = estimate_cost(graph.module, *map(torch.from_numpy, inputs.values())).macs
            said[key] = count_macs(spec, tokens=sizes[dim] if dim else 1)[graph.component]
    assert said == counted
    assert list(said) == list(EXACT[name])
