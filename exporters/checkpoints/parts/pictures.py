"""preprocessor_config.json -> what the graph does with pixel values, and what a host does before it.

    library   value of a pixel -> resize -> crop -> * rescale_factor -> (x - mean) / std
    ours      value of a pixel -> resize -> crop -> / 255 -> graph: (x - mean') / std'

so mean' and std' are the library's divided by 255 * rescale_factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from exporters.checkpoints.base import Folder
from exporters.checkpoints.files.config import Config
from specs.errors import CheckpointError

_RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_STANDARD = [0.5, 0.5, 0.5]
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """An image processor of the library, by what it does where its file says nothing."""

    size: dict[str, int]
    resample: int
    crop: int | None = None
    mean: list[float] = field(default_factory=lambda: _STANDARD)
    std: list[float] = field(default_factory=lambda: _STANDARD)
    to_square: bool = True  # what a size of one number means
    crop_share: float = 0.0  # ConvNeXt's: the picture is resized to more than it takes, and cut
    normalises: bool = True
    flips: bool = False  # hands over BGR


VIT = Processor(size={"height": 224, "width": 224}, resample=2)
SIGLIP = Processor(size={"height": 224, "width": 224}, resample=3, to_square=False)
DEIT = Processor(size={"height": 256, "width": 256}, resample=3, crop=224)
CLIP = Processor(size={"shortest_edge": 224}, resample=3, crop=224, mean=_CLIP_MEAN, std=_CLIP_STD, to_square=False)
CONVNEXT = Processor(size={"shortest_edge": 384}, resample=3, to_square=False, crop_share=224 / 256)
MOBILEVIT = Processor(
    size={"shortest_edge": 224}, resample=3, crop=256, to_square=False, normalises=False, flips=True
)  # fmt: skip

#: `image_processor_type`, or `feature_extractor_type` of old files, without its ending
_PROCESSORS = {
    "ViT": VIT, "Siglip": SIGLIP, "DeiT": DEIT, "CLIP": CLIP, "Bit": CLIP, "ConvNext": CONVNEXT,
    "MobileViT": MOBILEVIT,
}  # fmt: skip
_WARPED_FROM = 384  # pixels: ConvNeXt's processor resizes larger pictures to a square, and cuts nothing
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


def read_pictures(folder: Folder, image: tuple[int, int], channels: int, usual: Processor) -> dict[str, Any]:
    """`image_mean`, `image_std`, `preprocessing` and, where it is not RGB, `channel_order` of a vision component.

    Args:
        image: height and width that the model takes.
        usual: the family's own processor, which stands for a file that is missing.

    Raises:
        CheckpointError: an unknown processor, an option that is not implemented, another size than the model's.
    """
    config = _find_config(folder)
    processor = _find_processor(config, usual)
    steps, final = _read_steps(config, processor) if config.data else (_make_usual_steps(processor, image), image)
    if final is not None and final != image:
        raise CheckpointError(
            "the image processor makes pictures of another size than the model takes",
            where=config.where,
            got=f"{final[0]} by {final[1]} pixels",
            allowed=f"{image[0]} by {image[1]}, as config.json says",
            fix="use the files of one checkpoint",
        )
    mean, std = _read_values(config, processor)
    scale = 255 * (
        config.take_positive("rescale_factor", float, 1 / 255) if config.take("do_rescale", bool, True) else 1.0
    )
    if not math.isclose(scale, 1.0, rel_tol=1e-12):
        mean, std = [value / scale for value in mean], [value / scale for value in std]
    if channels == 1 and len(set(mean)) == len(set(std)) == 1:
        mean, std = mean[:1], std[:1]
    if len(mean) not in (1, channels) and not config.data:  # nothing that the library's processors could make
        mean, std = [0.0], [1.0]
    read = {"image_mean": mean, "image_std": std, "preprocessing": steps}
    flips = channels == 3 and config.take("do_flip_channel_order", bool, processor.flips) and processor.flips
    return read | ({"channel_order": "bgr"} if flips else {})


def read_picture_size(folder: Folder, usual: Processor) -> tuple[int, int] | None:
    """Height and width that the image processor makes; None where it keeps a picture's own, or its file is missing.

    Raises:
        CheckpointError: as `read_pictures`.
    """
    config = _find_config(folder)
    return _read_steps(config, _find_processor(config, usual))[1] if config.data else None


def _make_usual_steps(processor: Processor, image: tuple[int, int]) -> dict[str, Any]:
    """Without a file: the family's own way, at the model's size."""
    resample = {"resample": _RESAMPLES[processor.resample]}
    if processor.crop_share:
        return _make_cut_steps(min(image), processor.crop_share, image) | resample
    if processor.crop:
        return {"resize": "shortest_edge", "size": min(image), "crop": list(image)} | resample
    return {"resize": "stretch", "size": list(image)} | resample


def _make_cut_steps(edge: int, share: float, image: tuple[int, int]) -> dict[str, Any]:
    """ConvNeXt's: small pictures are made larger than the model takes, and cut; others are stretched."""
    if edge >= _WARPED_FROM:
        return {"resize": "stretch", "size": list(image)}
    return {"resize": "shortest_edge", "size": int(edge / share), "crop": list(image)}


def _find_config(folder: Folder) -> Config:
    config = folder.find_config("preprocessor_config.json")
    if config.data:
        return config
    return folder.find_config("processor_config.json").take_config("image_processor")


def _find_processor(config: Config, usual: Processor) -> Processor:
    name = config.take_first(("image_processor_type", "feature_extractor_type"), str, "")
    stem = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
    if name and stem not in _PROCESSORS:
        raise CheckpointError(
            f"the image processor '{name}' is not implemented",
            where=config.where,
            allowed=", ".join(f"{known}ImageProcessor" for known in _PROCESSORS),
            fix="prepare pictures in your own code, and remove the file: the graph takes their pixels",
        )
    return _PROCESSORS[stem] if name else usual


def _read_steps(config: Config, processor: Processor) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """What a host does, and the height and width that it always ends in."""
    config.require("do_pad", (False,), False)
    steps: dict[str, Any] = {"resize": "none"}
    final: tuple[int, int] | None = None
    if config.take("do_resize", bool, True):
        size = _read_size(config, "size", processor.size, to_square=processor.to_square)
        if processor.crop_share and set(size) == {"shortest_edge"}:
            share = config.take("crop_pct", float, processor.crop_share)
            if not 0 < share <= 1:
                raise CheckpointError(
                    "'crop_pct' is no share of a picture",
                    where=config.where,
                    got=str(share),
                    fix="write a number above 0, at most 1",
                )
            final = size["shortest_edge"], size["shortest_edge"]
            steps = _make_cut_steps(size["shortest_edge"], share, final)
        elif set(size) == {"height", "width"} and not processor.crop_share:
            final = size["height"], size["width"]
            steps = {"resize": "stretch", "size": list(final)}
        elif set(size) == {"shortest_edge"}:
            steps = {"resize": "shortest_edge", "size": size["shortest_edge"]}
        else:
            raise CheckpointError(
                "this way of resizing is not implemented",
                where=config.where,
                got=f"size {size}",
                allowed="height and width, or shortest_edge",
                fix="correct the file: the model takes pictures of one size",
            )
        steps["resample"] = _RESAMPLES[config.require("resample", tuple(_RESAMPLES), processor.resample)]
    if config.take("do_center_crop", bool, processor.crop is not None):
        square = {"height": processor.crop or 224, "width": processor.crop or 224}
        crop = _read_size(config, "crop_size", square, to_square=True)
        cut, final = final, (crop.get("height", 0), crop.get("width", 0))
        if processor.crop_share and cut not in (None, final):
            raise CheckpointError(
                "two crops of different sizes are not implemented",
                where=config.where,
                got=str(crop),
                fix="correct the file: the model takes pictures of one size",
            )
        steps["crop"] = list(final)
    return steps, final


def _read_size(config: Config, key: str, usual: dict[str, int], *, to_square: bool) -> dict[str, int]:
    value = config.data.get(key)
    if value is None:
        return usual
    if type(value) is int:
        return {"height": value, "width": value} if to_square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    given = value if isinstance(value, dict) else {}
    size = Config({name: number for name, number in given.items() if number is not None}, f"{config.where}: {key}")
    return {name: size.take(name, int) for name in size.data}


def _read_values(config: Config, processor: Processor) -> tuple[list[float], list[float]]:
    if not processor.normalises or not config.take("do_normalize", bool, True):
        return [0.0], [1.0]

    def read(key: str, usual: list[float]) -> list[float]:
        value = config.data.get(key)
        value = usual if value is None else value if isinstance(value, list) else [value]
        if not all(type(one) in (int, float) for one in value):
            raise CheckpointError(
                f"'{key}' is not a list of numbers",
                where=config.where,
                got=repr(value)[:80],
                fix="write one number a channel",
            )
        return [float(one) for one in value]

    return read("image_mean", processor.mean), read("image_std", processor.std)
