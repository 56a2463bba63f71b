"""What every host of latent diffusion does: unit noise to latents, one call of a denoiser a step, guided.

    sample = noise * start
    each step: e = denoiser(scaled sample, t, [without text; with text])
               sample = step(e_without + guidance (e_with - e_without))

Guidance without a classifier (Ho and Salimans 2022) runs as one batch of twice the size. Not here: what the denoiser
is told beside the sample, and how latents become pictures or films.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np

from engines.runtime.fields import take_choice, take_field
from engines.runtime.pipelines.stages.schedulers import SCHEDULERS, Scheduler
from specs.errors import BundleError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

    #: (scaled sample [B, C, ...], timesteps [B], index of the step) -> the denoiser's output, of the sample's shape.
    Denoiser = Callable[[Array, Array, int], Array]

_AT = "pipeline.scheduler"
_SMALLEST = 1e-9  # factor
_SPACINGS = ("leading", "trailing", "linspace")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


@final
class Schedule:
    """A manifest's `pipeline.scheduler`: which solver, its tables, and what a host does when it is told nothing."""

    def __init__(self, pipeline: Mapping[str, Any]) -> None:
        config: dict[str, Any] = take_field(pipeline, "scheduler", dict)
        self._method = take_choice(config, "method", SCHEDULERS, at=_AT)
        for key, choices in (
            ("timestep_spacing", _SPACINGS),
            ("prediction_type", _PREDICTIONS),
            ("beta_schedule", _BETAS),
        ):
            take_choice(config, key, choices, at=_AT)
        for key in ("beta_start", "beta_end"):
            if not 0 < take_field(config, key, float, at=_AT) < 1:
                raise BundleError(f"manifest: {_AT}.{key} must lie between 0 and 1", fix="export the bundle again")
        take_field(config, "num_train_timesteps", int, at=_AT, least=2)
        take_field(config, "steps_offset", int, at=_AT, least=0)
        take_field(config, "set_alpha_to_one", bool, at=_AT)
        if config.get("clip_sample") is not None:
            take_field(config, "clip_sample", float, at=_AT)
        self.config = config
        self.steps = take_field(config, "steps", int, at=_AT)
        self.guidance_scale = take_scale(config, "guidance_scale", at=_AT)
        self.clears_empty_prompt = config.get("empty_prompt") == "zeros"
        self.refiner_start = take_field(config, "refiner_start", float, 1.0, at=_AT)

    def begin(self, steps: int | None = None) -> Scheduler:
        """A run of `steps` steps, the bundle's own number when absent.

        Raises:
            InputError: fewer steps than one, or more than the noise schedule has.
        """
        return SCHEDULERS[self._method](self.config, self.steps if steps is None else steps)

    def choose_guidance(self, guidance_scale: float | None) -> float:
        """The weight of the text: as asked for, or the bundle's own."""
        return self.guidance_scale if guidance_scale is None else float(guidance_scale)


def take_scale(config: Mapping[str, Any], key: str, default: float | None = None, *, at: str = "pipeline") -> float:
    """`config[key]`, a factor that float32 can multiply and divide by; BundleError for any other."""
    value = take_field(config, key, float, default, at=at)
    if not _SMALLEST <= abs(value) <= 1 / _SMALLEST:
        raise BundleError(f"manifest: {at}.{key} is no factor", got=f"{value:g}", fix="export the bundle again")
    return value


def remove_noise(noise: Array, scheduler: Scheduler, guidance: float, denoiser: Denoiser) -> Array:
    """Latents of `noise` [B, C, ...] of unit variance, float32.

    Above a `guidance` of 1 the denoiser is given twice the rows, first those without text.
    """
    sample: Array = noise.astype(np.float32) * np.float32(scheduler.start_scale)
    rows = len(noise)
    for index, timestep in enumerate(scheduler.timesteps):
        shown = np.ascontiguousarray(scheduler.scale_input(sample, index), np.float32)
        if guidance > 1:
            shown = np.concatenate([shown, shown])
        output = denoiser(shown, np.full(len(shown), timestep, np.float32), index)
        if guidance > 1:
            output = output[:rows] + np.float32(guidance) * (output[rows:] - output[:rows])
        sample = scheduler.step(output, index, sample)
    return sample
