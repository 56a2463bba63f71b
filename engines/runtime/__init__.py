"""What an edge app embeds: open a bundle and run it.

Needs Python 3.10+, numpy, and one of onnxruntime or tensorrt (imported when a bundle needs it). Importing this
package imports nothing else: no torch, onnx, pydantic, yaml or click.

    session = load("digits.bundle")
    session.run({"image": pixels})            # named arrays in, named arrays out
    session.run({"image": tensor_on_the_gpu}) # with a TensorRT engine: taken and given without a copy
    session.pipeline.classify("seven.png")    # or the bundle's own host loop
"""

from __future__ import annotations

from engines.runtime.answer import answer
from engines.runtime.device.arrays import DeviceArray
from engines.runtime.graph_session import Choice, GraphSession
from engines.runtime.pipelines import ImageClassification, ImageTextSimilarity, Tensors, TextGeneration
from engines.runtime.request import Answer, Film, Mesh, Picture, Request, Sound
from engines.runtime.session import Session, load

__all__ = [
    "Answer",
    "Choice",
    "DeviceArray",
    "Film",
    "GraphSession",
    "ImageClassification",
    "ImageTextSimilarity",
    "Mesh",
    "Picture",
    "Request",
    "Session",
    "Sound",
    "Tensors",
    "TextGeneration",
    "answer",
    "load",
]
