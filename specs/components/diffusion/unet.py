"""The U-Net that removes noise from latents, step by step, as a text asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Epsilon, LayerCount, Positive, Size, check_divides
from specs.components.costs import Cost, cost_attention, cost_conv, cost_linear, cost_norm, cost_resnet

_KEYS = 77  # text tokens where nothing says how many: CLIP's context


class UNetStage(NamedTuple):
    """One resolution of a U-Net on its way down, in the middle, or up."""

    inputs: tuple[int, ...]  # channels that each ResNet block reads
    width: int  # channels that each of them writes
    layers: tuple[int, ...]  # transformer layers behind each ResNet block (in the middle: before the second)
    heads: int
    only_cross: bool
    resample: bool


class UNetComponent(Component):
    """`UNet2DConditionModel` (Rombach et al. 2022): Stable Diffusion 1 and 2, SDXL (Podell et al. 2023) and between.

    Tuples have one entry for each resolution, the finest first; `num_heads` is what diffusers calls
    `attention_head_dim`.
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset(
        {"kind", "mid_block", "added_condition", "time_scale_shift", "num_classes", "encoder_size"}
        | {"center_input_sample", "flip_sin_to_cos", "downsample_padding", "upcast_attention"}
    )

    kind: Literal["diffusion.unet"]
    in_channels: Size = 4
    out_channels: Size = 4
    block_out_channels: tuple[Size, ...] = Field(min_length=1)
    down_attention: tuple[bool, ...] = Field(description="which resolutions have transformers on the way down")
    up_attention: tuple[bool, ...] = Field(description="and on the way up, the coarsest first")
    mid_block: Literal["cross_attention", "resnet", "none"] = "cross_attention"
    layers_per_block: tuple[LayerCount, ...]
    transformer_layers: tuple[LayerCount | tuple[LayerCount, ...], ...] = Field(
        description="layers of a transformer, for all of a resolution or for each of its ResNet blocks"
    )
    up_transformer_layers: tuple[LayerCount | tuple[LayerCount, ...], ...] | None = Field(
        default=None, description="on the way up, the coarsest first; transformer_layers reversed when absent"
    )
    num_heads: tuple[Size, ...]
    cross_attention_size: Size = Field(description="width of the text states that transformers look at")
    encoder_size: Size | None = Field(
        default=None, description="width of the text states as they come, where a Linear projects them"
    )
    only_cross_attention: tuple[bool, ...] | None = Field(
        default=None, description="resolutions whose first attention looks at the text too; none when absent"
    )
    norm_num_groups: Size = 32
    norm_eps: Epsilon = 1e-5
    time_embedding_size: Size | None = Field(default=None, description="4 * block_out_channels[0] when absent")
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_scale_shift: bool = Field(default=False, description="time scales and shifts a norm, instead of a shift alone")
    added_condition: Literal["none", "text_time"] = Field(
        default="none", description="text_time: a pooled text and numbers such as sizes (SDXL's micro-conditioning)"
    )
    added_text_size: Size | None = Field(default=None, description="width of the pooled text of text_time")
    added_time_size: Size | None = Field(default=None, description="width of the sinusoids of each of its numbers")
    added_time_count: Size | None = Field(default=None, description="how many numbers: 6 for SDXL, 5 for its refiner")
    num_classes: Size | None = Field(default=None, description="classes whose embedding is added to the time's")
    conv_in_kernel: Annotated[int, Field(ge=1, le=15)] = 3
    conv_out_kernel: Annotated[int, Field(ge=1, le=15)] = 3
    downsample_padding: Literal[0, 1] = 1
    mid_block_scale_factor: Positive = 1.0
    center_input_sample: bool = False
    upcast_attention: bool = Field(default=False, description="fp16 graphs keep attention scores in float32")
    sample_size: tuple[Size, Size] = Field(default=(64, 64), description="latent height and width it is made for")

    @model_validator(mode="after")
    def _check_blocks(self) -> UNetComponent:
        count = len(self.block_out_channels)
        for key in ("down_attention", "up_attention", "layers_per_block", "transformer_layers", "num_heads"):
            if len(getattr(self, key)) != count:
                raise ValueError(f"{key} needs {count} entries, one for each of block_out_channels")
        for key in ("up_transformer_layers", "only_cross_attention"):
            if getattr(self, key) is not None and len(getattr(self, key)) != count:
                raise ValueError(f"{key} needs {count} entries, one for each of block_out_channels")
        for width in self.block_out_channels:
            check_divides(width, self.norm_num_groups, size_name="block_out_channels", heads_name="norm_num_groups")
        added = (self.added_text_size, self.added_time_size, self.added_time_count)
        if (self.added_condition == "text_time") != all(added) or (self.added_condition == "none") != (not any(added)):
            raise ValueError(
                "added_text_size, added_time_size and added_time_count belong to added_condition text_time"
            )
        middle = self.find_mid_stage()
        for stage in (*self.list_down_stages(), *([middle] if middle else ()), *self.list_up_stages()):
            if stage.layers:
                check_divides(stage.width, stage.heads, size_name="block_out_channels", heads_name="num_heads")
            if stage is not middle and stage.layers and len(stage.layers) != len(stage.inputs):
                raise ValueError(f"transformer_layers gives {len(stage.layers)} of {len(stage.inputs)} ResNet blocks")
            for size in stage.inputs:
                check_divides(
                    size, self.norm_num_groups, size_name="a ResNet block's channels", heads_name="norm_num_groups"
                )
        return self

    @property
    def time_width(self) -> int:
        return self.time_embedding_size or 4 * self.block_out_channels[0]

    @property
    def context_size(self) -> int:
        """Width of the text states that the graph takes."""
        return self.encoder_size or self.cross_attention_size

    def list_down_stages(self) -> tuple[UNetStage, ...]:
        """The finest first."""
        widths, stages = self.block_out_channels, []
        for index, width in enumerate(widths):
            count = self.layers_per_block[index]
            before = widths[max(index - 1, 0)]
            layers = _spread(self.transformer_layers[index], count) if self.down_attention[index] else ()
            stages.append(
                UNetStage(
                    inputs=(before, *[width] * (count - 1)),
                    width=width,
                    layers=layers,
                    heads=self.num_heads[index],
                    only_cross=bool(self.only_cross_attention and self.only_cross_attention[index]),
                    resample=index < len(widths) - 1,
                )
            )
        return tuple(stages)

    def find_mid_stage(self) -> UNetStage | None:
        """Two ResNet blocks around a transformer, one ResNet block alone, or nothing."""
        width = self.block_out_channels[-1]
        if self.mid_block == "none":
            return None
        attends = self.mid_block == "cross_attention"
        layers = _spread(self.transformer_layers[-1], 1)[:1] if attends else ()
        return UNetStage((width,) * (1 + attends), width, layers, self.num_heads[-1], False, False)

    def list_up_stages(self) -> tuple[UNetStage, ...]:
        """The coarsest first; each ResNet block reads what came before and one skip connection."""
        widths, stages, before = self.block_out_channels[::-1], [], self.block_out_channels[-1]
        layers_by_stage = self.up_transformer_layers or self.transformer_layers[::-1]
        only_cross = (self.only_cross_attention or (False,) * len(widths))[::-1]
        for index, width in enumerate(widths):
            count = self.layers_per_block[::-1][index] + 1
            last_skip = widths[min(index + 1, len(widths) - 1)]
            inputs = [(before if n == 0 else width) + (last_skip if n == count - 1 else width) for n in range(count)]
            layers = _spread(layers_by_stage[index], count) if self.up_attention[index] else ()
            heads = self.num_heads[::-1][index]
            stages.append(UNetStage(tuple(inputs), width, layers, heads, only_cross[index], index < len(widths) - 1))
            before = width
        return tuple(stages)

    def count_parameters(self) -> int:
        return self._walk(*self.sample_size, _KEYS).parameters

    def count_macs(self, tokens: int) -> int:
        """Of one step on latents of `sample_size`, with 77 tokens of text."""
        return self._walk(*self.sample_size, _KEYS).macs

    def count_table(self) -> int:
        return (self.num_classes or 0) * self.time_width

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        batch, keys = sizes["batch"], sizes.get("tokens", _KEYS)
        height, width = (
            sizes.get(name, size) for name, size in zip(("height", "width"), self.sample_size, strict=True)
        )
        cost = self._walk(height, width, keys)
        skips = sum(
            stage.width * len(stage.inputs) * height * width >> 2 * i for i, stage in enumerate(self.list_down_stages())
        )
        interface = (self.in_channels + self.out_channels) * height * width + keys * self.context_size
        return Activations(layer=batch * (cost.peak + skips), interface=batch * interface)

    def _walk(self, height: int, width: int, keys: int) -> Cost:
        places, first = height * width, self.block_out_channels[0]
        cost = cost_conv(self.in_channels, first, self.conv_in_kernel, places) + self._walk_conditions(keys)
        for stage in self.list_down_stages():
            cost += self._walk_stage(stage, places, keys)
            if stage.resample:
                places = max(1, places // 4)
                cost += cost_conv(stage.width, stage.width, 3, places)
        middle = self.find_mid_stage()
        if middle is not None:
            cost += self._walk_stage(middle, places, keys)
        for stage in self.list_up_stages():
            cost += self._walk_stage(stage, places, keys)
            if stage.resample:
                places *= 4
                cost += cost_conv(stage.width, stage.width, 3, places)
        return cost + cost_norm(first) + cost_conv(first, self.out_channels, self.conv_out_kernel, places)

    def _walk_conditions(self, keys: int) -> Cost:
        wide = self.time_width
        cost = cost_linear(self.block_out_channels[0], wide) + cost_linear(wide, wide)
        if self.added_condition == "text_time":
            assert self.added_text_size and self.added_time_size and self.added_time_count, "validated"
            cost += cost_linear(self.added_text_size + self.added_time_size * self.added_time_count, wide)
            cost += cost_linear(wide, wide)
        if self.encoder_size:
            cost += cost_linear(self.encoder_size, self.cross_attention_size, keys)
        return cost + Cost(parameters=self.count_table())

    def _walk_stage(self, stage: UNetStage, places: int, keys: int) -> Cost:
        cost = Cost()
        condition = self.time_width
        for size in stage.inputs:
            cost += cost_resnet(size, stage.width, condition, places)
            if self.time_scale_shift:
                cost += cost_linear(condition, stage.width)  # as many again
        for layers in stage.layers:
            width = stage.width
            cost += cost_norm(width) + cost_linear(width, width, places) + cost_linear(width, width, places)
            for _ in range(layers):
                cost += self._walk_layer(stage, places, keys)
        return cost

    def _walk_layer(self, stage: UNetStage, places: int, keys: int) -> Cost:
        """Attention over the picture, over the text, and a GEGLU of four times the width."""
        width, context = stage.width, self.cross_attention_size
        first = (context, keys) if stage.only_cross else (width, places)
        cost = cost_norm(width) + cost_norm(width) + cost_norm(width)
        cost += cost_attention(width, first[0], places, first[1], stage.heads, bias=False)
        cost += cost_attention(width, context, places, keys, stage.heads, bias=False)
        return cost + cost_linear(width, 8 * width, places) + cost_linear(4 * width, width, places)


def _spread(layers: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    return (layers,) * count if isinstance(layers, int) else layers
