"""The noise schedule of a diffusion and how a host steps along it: no graph, no parameters, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from specs.components.base import Activations, Component, Positive, Size

_STEPS_AT_MOST = 1000


class SchedulerComponent(Component):
    """How much noise each timestep has, and which solver removes it (`engines/runtime/pipelines/stages/schedulers.py`).

    Method ddim (Song et al. 2021), euler (Karras et al. 2022, as diffusers' EulerDiscreteScheduler), or pndm (Liu et
    al. 2022, its linear multistep part alone, which Stable Diffusion 1 ships with).
    """

    STRUCTURE: ClassVar[frozenset[str]] = frozenset({"kind", "method", "prediction_type"})

    kind: Literal["diffusion.scheduler"]
    method: Literal["ddim", "euler", "pndm"]
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: Annotated[int, Field(ge=0)] = 1
    clip_sample: Positive | None = Field(
        default=None, description="ddim: predicted samples are cut to plus and minus this"
    )
    set_alpha_to_one: bool = Field(default=False, description="ddim, pndm: the last step ends without any noise")
    karras_sigmas: bool = Field(default=False, description="euler: noise levels spaced as Karras et al. 2022 do")
    steps: Size = Field(default=30, description="steps that a host makes when it is not told otherwise")
    guidance_scale: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=7.5, description="weight of the prompt against no prompt; 1 asks the denoiser once a step"
    )
    empty_prompt: Literal["text", "zeros"] = Field(
        default="text", description="what no prompt is: an empty text, or states of zeros as SDXL was trained with"
    )
    refiner_start: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.8, description="share of the timesteps after which a refiner takes over, where there is one"
    )

    @model_validator(mode="after")
    def _check_method(self) -> SchedulerComponent:
        if self.steps > min(self.num_train_timesteps, _STEPS_AT_MOST):
            raise ValueError(f"steps {self.steps} are more than num_train_timesteps {self.num_train_timesteps}")
        if self.steps_offset >= self.num_train_timesteps:
            raise ValueError(f"steps_offset {self.steps_offset} leaves no timestep of {self.num_train_timesteps}")
        if self.karras_sigmas and self.method != "euler":
            raise ValueError(f"karras_sigmas belongs to method euler, and {self.method} does not use it")
        if self.clip_sample is not None and self.method != "ddim":
            raise ValueError(f"clip_sample belongs to method ddim, and {self.method} does not use it")
        if self.method == "pndm" and self.prediction_type == "sample":
            raise ValueError("pndm takes prediction_type epsilon or v_prediction")
        return self

    def count_parameters(self) -> int:
        return 0

    def count_macs(self, tokens: int) -> int:
        return 0

    def count_activations(self, sizes: Mapping[str, int]) -> Activations:
        return Activations(layer=0, interface=0)
