"""Neural codecs for sound: codes in, samples out."""

from __future__ import annotations

from typing import ClassVar, cast, final

from specs.components.encodec import EncodecComponent
from specs.errors import SpecError
from specs.families.base import BATCH, Components, Family, GraphSpec, Roles, make_float, make_ids
from specs.schema import Dim, Spec


@final
class AudioCodecFamily(Family):
    """`audio.encodec_decoder`."""

    kind = "audio-codec"
    title = "an audio codec"
    roles: ClassVar = {"codec": ("audio.encodec_decoder",)}
    dims: ClassVar = {
        "batch": BATCH,
        "frames": Dim(min=1, opt=500, max=1500),
        "codebooks": Dim(min=1, opt=4, max=4),
    }
    architectures = ("cnn", "hybrid")
    objectives = ("reconstruction",)

    def list_graphs(self, components: Components, roles: Roles) -> tuple[GraphSpec, ...]:
        name = roles["codec"]
        config = cast(EncodecComponent, components[name])
        return (make_decode_graph(name, config, codebooks="codebooks"),)

    def check(self, spec: Spec, roles: Roles) -> None:
        check_codebooks(spec, roles["codec"])


def make_decode_graph(name: str, config: EncodecComponent, *, codebooks: int | str) -> GraphSpec:
    """codes [batch, codebooks, frames] -> samples [batch, channels, samples = frames * hop length]."""
    codes = make_ids("codes", "batch", codebooks, "frames", vocab_size=config.codebook_size)
    samples = make_float("samples", "batch", config.audio_channels, "samples")
    return GraphSpec(name=f"{name}.decode", component=name, file_stem="decode", inputs=(codes,), outputs=(samples,))


def check_codebooks(spec: Spec, codec: str) -> None:
    """SpecError when the dim allows more codebooks than there are."""
    config = cast(EncodecComponent, spec.components[codec])
    asked = {**AudioCodecFamily.dims, **spec.dims}["codebooks"].max
    if asked > config.num_codebooks:
        raise SpecError(
            f"dims.codebooks.max {asked} is more than the codec has",
            where="dims.codebooks.max",
            allowed=f"1 to {config.num_codebooks}, num_codebooks of '{codec}'",
            fix="lower it",
        )
