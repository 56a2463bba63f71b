"""Neural codecs for sound: samples in, vectors out; codes in, samples out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components.audio.encodec import EncodecComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids
from specs.schema import Dim, Spec


@final
class AudioCodecFamily(Family):
    """`audio.encodec`, or `audio.encodec_decoder`, which has the last of three graphs alone."""

    kind = "audio-codec"
    title = "an audio codec"
    roles: ClassVar = {"codec": ("audio.encodec", "audio.encodec_decoder")}
    dims: ClassVar = {
        "batch": BATCH,
        "samples": Dim(min=1024, opt=1 << 17, max=1 << 19),
        "frames": Dim(min=1, opt=500, max=2048),
        "codebooks": Dim(min=1, opt=4, max=4),
    }
    architectures = ("cnn", "hybrid")
    objectives = ("reconstruction",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["codec"]
        config = cast(EncodecComponent, components[name])
        decode = make_decode_graph(name, config, codebooks="codebooks")
        if not config.has_encoder:
            return (decode,)
        samples = make_float("samples", "batch", config.audio_channels, "samples")
        vectors = make_float("vectors", "batch", config.hidden_size, "vectors")
        encode = GraphSpec(
            name=f"{name}.encode", component=name, file_stem="encode", inputs=(samples,), outputs=(vectors,)
        )
        found = make_float("vectors", "batch", "codebooks", "frames", config.hidden_size)
        look_up = GraphSpec(
            name=f"{name}.look_up", component=name, file_stem="look_up", inputs=decode.inputs, outputs=(found,)
        )
        return encode, look_up, decode

    def check(self, spec: Spec, roles: Roles) -> None:
        config = cast(EncodecComponent, spec.components[roles["codec"]])
        dims = {**self.dims, **spec.dims}
        if dims["codebooks"].max > config.num_codebooks:
            raise SpecError(
                f"dims.codebooks.max {dims['codebooks'].max} is more than the codec has",
                where="dims.codebooks.max",
                allowed=f"1 to {config.num_codebooks}, num_codebooks of '{roles['codec']}'",
                fix="lower it",
            )
        if config.has_encoder and dims["samples"].min <= config.hop_length:
            raise SpecError(
                f"dims.samples.min {dims['samples'].min} is no more than a frame",
                where="dims.samples.min",
                allowed=f"{config.hop_length + 1} or more: a frame is the product of upsampling_ratios",
                fix="raise it: a host fills a shorter sound with silence",
            )


def make_decode_graph(name: str, config: EncodecComponent, *, codebooks: int | str) -> GraphSpec:
    """codes [batch, codebooks, frames] -> samples [batch, channels, length = frames * hop length]."""
    codes = make_ids("codes", "batch", codebooks, "frames", vocab_size=config.codebook_size)
    samples = make_float("samples", "batch", config.audio_channels, "length")
    return GraphSpec(name=f"{name}.decode", component=name, file_stem="decode", inputs=(codes,), outputs=(samples,))
