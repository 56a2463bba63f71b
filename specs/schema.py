"""The spec: what a user writes in YAML, validated and frozen.

`Spec` is the whole file; `Component` (in `components/`) is one entry of `components`. Everything here is a value:
no torch, no ONNX, no file access. `parse.py` turns text into these, `wording.py` words the errors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from specs.components import Component

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Modality = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=32)]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4", "auto"]

#: Precisions that a pass pipeline exists for today; the others are words the spec language reserves.
IMPLEMENTED_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

#: More than that measures no better range, and random samples would be drawn until somebody stops it.
MOST_SAMPLES = 1 << 16

#: (input modalities, output modalities) -> objectives that the field uses for it. An unlisted pair gets no advice.
RECOMMENDED_OBJECTIVES: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {
    (("text",), ("text",)): ("autoregressive", "masked"),
    (("image",), ("image",)): ("diffusion", "classification"),
    (("image",), ("label",)): ("classification",),
    (("text",), ("image",)): ("diffusion",),
    (("audio",), ("audio",)): ("autoregressive", "reconstruction"),
    (("audio",), ("text",)): ("autoregressive", "ctc"),
    (("text",), ("audio",)): ("autoregressive", "diffusion", "reconstruction"),
    (("text",), ("embedding",)): ("contrastive", "masked"),
    (("image", "text"), ("text",)): ("autoregressive",),
    (("image",), ("text",)): ("autoregressive",),
    (("text", "video"), ("text",)): ("autoregressive",),
    (("text",), ("video",)): ("diffusion",),
    (("image", "text"), ("embedding",)): ("contrastive",),
}


def _make_default_precision() -> dict[str, Precision]:
    return {"default": "fp16"}


class Frozen(BaseModel):
    """Immutable, and every unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dim(Frozen):
    """The range of one dynamic dimension: what must work (min, max) and what is tuned for (opt)."""

    min: int = Field(ge=1, le=1 << 20, description="smallest size that must work")
    opt: int = Field(ge=1, le=1 << 20, description="size that engines are tuned for")
    max: int = Field(ge=1, le=1 << 20, description="largest size that must work")

    @model_validator(mode="after")
    def _check_order(self) -> Dim:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"needs min <= opt <= max, got min {self.min}, opt {self.opt}, max {self.max}")
        return self


class ModalitySpec(Frozen):
    """What goes in and what comes out. An open set: text, image, audio, video, mesh, sensor, or a name of yours."""

    inputs: tuple[Modality, ...] = Field(min_length=1)
    outputs: tuple[Modality, ...] = Field(min_length=1)


class WeightsSpec(Frozen):
    """Where parameters come from."""

    source: str = Field(
        default="random",
        description="`random`, a .safetensors file or a checkpoint's folder (relative to the spec's own folder)",
    )
    seed: int = Field(default=0, ge=0, description="seed of random weights, and of example inputs")
    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        default="fp32", description="what random weights are stored in; those of a file keep their own type"
    )


class TokenizerSpec(Frozen):
    """How text becomes the ids that a component reads, and back."""

    source: str = Field(
        description="a `tokenizer.json` of the tokenizers library (relative to the spec's own folder)",
    )
    end_tokens: tuple[int, ...] = Field(default=(), description="ids that end a generated text")
    pad_token: int = Field(default=0, ge=0, description="id that fills a text up to a fixed length")
    chat_template: str = Field(
        default="", max_length=1 << 17, description="Jinja text that makes a conversation one text, as transformers' do"
    )
    special_tokens: dict[str, str] = Field(
        default_factory=dict, description="texts that the template names: bos_token, eos_token, ..."
    )


class CalibrationSpec(Frozen):
    """What INT8 ranges are measured on."""

    source: str = Field(
        default="random",
        description="`random`, or a .npz with one array per graph input (relative to the spec's own folder)",
    )
    samples: int = Field(
        default=64, ge=1, le=MOST_SAMPLES, description="how many samples to use at most; 64 to 512 are usual"
    )
    method: Literal["max", "mse", "entropy", "percentile"] = Field(
        default="max", description="how a range is chosen from what was observed"
    )


class EvaluationSpec(Frozen):
    """Labelled held-out data, for the figure that users care about beside tensor differences."""

    source: str = Field(description=".npz with one array per graph input, and `labels`")
    metric: Literal["top1"] = Field(default="top1", description="share of samples whose largest logit is the label")
    max_loss: float = Field(
        default=0.005, ge=0, le=1, description="how much of the metric a lower precision may lose against fp32"
    )


class ParitySpec(Frozen):
    """Limits stricter or looser than the tolerance table's, with the same meaning."""

    cosine: float | None = Field(default=None, gt=0, le=1, description="smallest cosine similarity of any output")
    max_abs: float | None = Field(default=None, gt=0, description="largest absolute difference of any element")


class Spec(Frozen):
    """One deployable model.

    A component is a part with its own graph and its own precision. What can be derived (parameters, memory, inputs,
    outputs, example data) is not asked for.
    """

    name: Name
    description: str = ""
    modality: ModalitySpec
    architecture: Literal["transformer", "cnn", "diffusion", "hybrid"] = "transformer"
    objective: Literal[
        "autoregressive", "masked", "diffusion", "classification", "contrastive", "ctc", "reconstruction"
    ]
    components: dict[Name, SerializeAsAny[Component]] = Field(min_length=1)
    weights: WeightsSpec = WeightsSpec()
    dims: dict[str, Dim] = Field(default_factory=dict, description="dynamic dimensions by name")
    precision: dict[str, Precision] = Field(
        default_factory=_make_default_precision, description="`default`, and exceptions by component"
    )
    targets: tuple[str, ...] = Field(default=("cpu",), min_length=1)
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec | None = None
    tokenizers: dict[Name, TokenizerSpec] = Field(
        default_factory=dict, description="by the component whose ids they make; bytes or bare ids where absent"
    )
    labels: tuple[str, ...] = Field(default=(), description="class names, in the order of the logits")
    parity: ParitySpec = ParitySpec()
    variant: str | None = Field(default=None, description="set by the loader: which of `variants` this is")

    @field_validator("components", mode="before")
    @classmethod
    def _components_are_typed(cls, value: object) -> object:
        if not isinstance(value, dict) or not all(isinstance(v, Component) for v in value.values()):
            raise ValueError("components must be parsed by specs.parsing.parse")
        return value

    @model_validator(mode="after")
    def _check_references(self) -> Spec:
        for name in self.precision:
            if name != "default" and name not in self.components:
                raise ValueError(f"precision names '{name}', which is no component")
        for name in self.tokenizers:
            if name not in self.components:
                raise ValueError(f"tokenizers names '{name}', which is no component")
        return self

    def precision_of(self, component: str) -> Precision:
        """The precision asked for `component`."""
        return self.precision.get(component, self.precision.get("default", "fp16"))

    def list_objective_advice(self) -> tuple[str, ...]:
        """Objectives the field recommends for these modalities, when this spec's is not among them."""
        pair = (tuple(sorted(self.modality.inputs)), tuple(sorted(self.modality.outputs)))
        advised = RECOMMENDED_OBJECTIVES.get(pair, ())
        return () if self.objective in advised else advised


class TensorSpec(Frozen):
    """One input or output of a graph.

    `shape` holds ints and the names of `Spec.dims`; `low` and `high` bound the values examples are drawn from
    (half open), so that ids stay inside a vocabulary and pixels inside [0, 1).
    """

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]
    low: float = -1.0
    high: float = 1.0
    counts: str | None = None  # the dim of which it says how many places of each row are valid
