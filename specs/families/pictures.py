"""What every family that looks at pictures shares: the towers there are, and the graph that takes a picture in.

image   float32 [batch, channels, height, width] in [0, 1], resized by a host
pixels  uint8 [batch, height, width, channels], as a camera gives them: `preprocess: graph`
"""

from __future__ import annotations

from specs.components import PictureComponent
from specs.families.base import GraphSpec, make_float, make_model_graph
from specs.schema import TensorSpec

#: Every kind that looks at one picture: transformers, convolutions, and both.
TOWERS = ("vision.vit", "vision.clip", "vision.siglip", "vision.resnet", "vision.mobilevit")
ARCHITECTURES = ("transformer", "cnn", "hybrid")

#: Modules that take raw values in: the name is part of what a module promises.
_RAW = ("raw", "raw.*", "*.raw", "*.raw.*")
_REASON = "raw values and their positions are beyond what float16 counts to"


def make_image(config: PictureComponent) -> TensorSpec:
    """`image`, or `pixels` where the graph prepares them."""
    if config.raw_shape is None:
        return make_float("image", "batch", config.num_channels, *config.image, low=0.0)
    return TensorSpec(name="pixels", dtype="uint8", shape=("batch", *config.raw_shape), low=0, high=256)


def make_picture_graph(name: str, config: PictureComponent, *outputs: TensorSpec) -> GraphSpec:
    """The graph of a tower."""
    return leave_raw(make_model_graph(name, (make_image(config),), outputs))


def leave_raw(graph: GraphSpec) -> GraphSpec:
    """The same graph, whose modules that take raw values in stay float32, and are not quantised."""
    for pattern in _RAW:
        graph = graph.keep(pattern, _REASON).leave(pattern, reason=_REASON)
    return graph
