"""Diffusion solvers on numpy, with diffusers' numbers: from noise to latents, one call of a denoiser at a time.

    betas -> alphas_cumprod [num_train_timesteps]     how much of the picture is left at each timestep, float32
    timesteps, noise levels                           for the number of steps that was asked for
    sample = step(model output, index, sample)

Tables are computed in float32 step by step as diffusers computes them: a schedule that is a rounding away is another
picture after fifty steps.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np

from specs.errors import InputError

if TYPE_CHECKING:
    from engines.runtime.arrays import Array

_COSINE_OFFSET, _MAX_BETA = 0.008, 0.999  # of squaredcos_cap_v2 (Nichol and Dhariwal 2021)
_KARRAS_RHO = 7.0


class Scheduler(ABC):
    """One run of `steps` steps. `timesteps` are what the denoiser is told, float32, the noisiest first."""

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        self.config, self.steps = config, steps
        self.trained = int(config["num_train_timesteps"])
        if not 1 <= steps <= self.trained:
            raise InputError(
                "the number of steps is out of range",
                got=str(steps),
                allowed=f"1 to {self.trained}",
                fix="choose a number of steps in this range",
            )
        self.alphas = compute_alphas(config)
        self.timesteps = self.choose_timesteps()

    @abstractmethod
    def choose_timesteps(self) -> Array:
        """The timestep of each call of the denoiser, float32."""

    @property
    def start_scale(self) -> float:
        """What unit noise is multiplied by to begin with."""
        return 1.0

    def scale_input(self, sample: Array, index: int) -> Array:
        """What the denoiser sees of `sample` in call number `index`."""
        return sample

    @abstractmethod
    def step(self, output: Array, index: int, sample: Array) -> Array:
        """The sample after call number `index` gave `output`."""

    def space_timesteps(self) -> Array:
        """Rounded timesteps, the noisiest first (Lin et al. 2024, table 2), float64."""
        spacing, offset = self.config["timestep_spacing"], int(self.config["steps_offset"])
        if spacing == "linspace":
            spaced: Array = np.linspace(0, self.trained - 1, self.steps).round()[::-1]
        elif spacing == "leading":
            spaced = (np.arange(self.steps) * (self.trained // self.steps))[::-1] + float(offset)
        else:
            spaced = np.round(np.arange(self.trained, 0, -self.trained / self.steps)) - 1
        return spaced

    def get_alpha(self, timestep: int) -> np.float32:
        """What is left of the picture at a timestep; behind the last one, all of it or what the first one leaves."""
        if timestep >= self.trained:
            raise InputError(
                "so many steps begin behind the last timestep, because steps_offset moves them",
                got=f"timestep {timestep} with {self.steps} steps",
                allowed=f"timesteps below {self.trained}",
                fix="make fewer steps",
            )
        if timestep >= 0:
            alpha = float(self.alphas[timestep])
        else:
            alpha = 1.0 if self.config["set_alpha_to_one"] else float(self.alphas[0])
        left: np.float32 = np.float32(alpha)
        return left


@final
class Ddim(Scheduler):
    """Denoising diffusion implicit models without added noise (Song et al. 2021, eta = 0)."""

    def choose_timesteps(self) -> Array:
        return self.space_timesteps().astype(np.float32)

    def step(self, output: Array, index: int, sample: Array) -> Array:
        timestep = int(self.timesteps[index])
        here, after = self.get_alpha(timestep), self.get_alpha(timestep - self.trained // self.steps)
        picture, noise = split_prediction(self.config["prediction_type"], output, sample, here)
        limit = self.config.get("clip_sample")
        if limit is not None:
            picture = picture.clip(-limit, limit)
        moved: Array = np.sqrt(after) * picture + np.sqrt(np.float32(1) - after) * noise
        return moved


@final
class Euler(Scheduler):
    """Euler's method along the noise level sigma (Karras et al. 2022, algorithm 2 without churn)."""

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        super().__init__(config, steps)
        every = np.sqrt((np.float32(1) - self.alphas) / self.alphas)
        sigmas = np.interp(self.timesteps, np.arange(self.trained), every)
        if config.get("karras_sigmas"):
            sigmas = _space_karras(sigmas, steps)
            self.timesteps = _find_timesteps(sigmas, np.log(every)).astype(np.float32)
        self.sigmas = np.append(sigmas, 0.0).astype(np.float32)

    def choose_timesteps(self) -> Array:
        if self.config["timestep_spacing"] == "linspace":  # not rounded here: noise levels are interpolated
            return np.linspace(0, self.trained - 1, self.steps, dtype=np.float32)[::-1]
        return self.space_timesteps().astype(np.float32)

    @property
    def start_scale(self) -> float:
        largest = self.sigmas.max()
        if self.config["timestep_spacing"] in ("linspace", "trailing"):
            return float(largest)
        return float(np.sqrt(largest * largest + np.float32(1)))

    def scale_input(self, sample: Array, index: int) -> Array:
        sigma = self.sigmas[index]
        scaled: Array = sample / np.sqrt(sigma * sigma + np.float32(1))
        return scaled

    def step(self, output: Array, index: int, sample: Array) -> Array:
        sigma, kind = self.sigmas[index], self.config["prediction_type"]
        if kind == "epsilon":
            picture = sample - sigma * output
        elif kind == "sample":
            picture = output
        else:
            variance = sigma * sigma + np.float32(1)
            picture = output * (-sigma / np.sqrt(variance)) + sample / variance
        moved: Array = sample + (sample - picture) / sigma * (self.sigmas[index + 1] - sigma)
        return moved


@final
class Pndm(Scheduler):
    """Pseudo linear multistep (Liu et al. 2022): four past outputs make one. The first step is made twice."""

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        super().__init__(config, steps)
        self._past: list[Array] = []
        self._start: Array | None = None

    def choose_timesteps(self) -> Array:
        rising = self.space_timesteps()[::-1]
        return np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1].astype(np.float32)

    def step(self, output: Array, index: int, sample: Array) -> Array:
        stride, timestep = self.trained // self.steps, int(self.timesteps[index])
        before, after = timestep, timestep - stride
        if index == 1:  # again from the start, with the mean of both outputs
            assert self._start is not None, "steps are made in order"
            before, after, sample = timestep + stride, timestep, self._start
            output = (output + self._past[-1]) / 2
        else:
            self._past = [*self._past[-3:], output]
            self._start = sample if index == 0 else None
            output = self._combine(self._past)
        return self._move(output, before, after, sample)

    @staticmethod
    def _combine(past: list[Array]) -> Array:
        """Adams-Bashforth of as many orders as there are outputs."""
        combined: Array = past[-1]
        if len(past) == 2:
            combined = (3 * past[-1] - past[-2]) / 2
        elif len(past) == 3:
            combined = (23 * past[-1] - 16 * past[-2] + 5 * past[-3]) / 12
        elif len(past) == 4:
            combined = np.float32(1 / 24) * (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4])
        return combined

    def _move(self, output: Array, before: int, after: int, sample: Array) -> Array:
        here, there = self.get_alpha(before), self.get_alpha(after)
        noise_here, noise_there = np.float32(1) - here, np.float32(1) - there
        if self.config["prediction_type"] == "v_prediction":
            output = np.sqrt(here) * output + np.sqrt(noise_here) * sample
        below = here * np.sqrt(noise_there) + np.sqrt(here * noise_here * there)
        moved: Array = np.sqrt(there / here) * sample - (there - here) * output / below
        return moved


SCHEDULERS: dict[str, type[Scheduler]] = {"ddim": Ddim, "euler": Euler, "pndm": Pndm}


def compute_alphas(config: Mapping[str, Any]) -> Array:
    """The product of 1 - beta up to each timestep, float32 [num_train_timesteps]."""
    count, schedule = int(config["num_train_timesteps"]), config["beta_schedule"]
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if schedule == "linear":
        betas = _space_linearly(start, end, count)
    elif schedule == "scaled_linear":
        root = _space_linearly(start**0.5, end**0.5, count)
        betas = root * root
    else:
        left = [_compute_cosine(step / count) for step in range(count + 1)]
        betas = np.array([min(1 - b / a, _MAX_BETA) for a, b in itertools.pairwise(left)], np.float32)
    alphas = np.float32(1) - betas
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)  # torch multiplies in double, too


def split_prediction(kind: str, output: Array, sample: Array, alpha: np.float32) -> tuple[Array, Array]:
    """The picture and the noise that a denoiser's output says `sample` is made of."""
    kept, noisy = np.sqrt(alpha), np.sqrt(np.float32(1) - alpha)
    if kind == "epsilon":
        return (sample - noisy * output) / kept, output
    if kind == "sample":
        return output, (sample - kept * output) / noisy
    return kept * sample - noisy * output, kept * output + noisy * sample


def _space_linearly(start: float, end: float, count: int) -> Array:
    """torch.linspace in float32: from both ends to the middle, each value rounded once."""
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(count - 1))
    index = np.arange(count)
    spaced: Array = np.where(index < count // 2, float(first) + step * index, float(last) - step * (count - 1 - index))
    return spaced.astype(np.float32)


def _compute_cosine(share: float) -> float:
    return math.cos((share + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2


def _space_karras(sigmas: Array, steps: int) -> Array:
    low, high = float(sigmas[-1]) ** (1 / _KARRAS_RHO), float(sigmas[0]) ** (1 / _KARRAS_RHO)
    spaced: Array = (high + np.linspace(0, 1, steps) * (low - high)) ** _KARRAS_RHO
    return spaced


def _find_timesteps(sigmas: Array, log_sigmas: Array) -> Array:
    """The timestep, between two of training, at which the noise has each level."""
    levels = np.log(np.maximum(sigmas, 1e-10))
    below = np.cumsum(levels - log_sigmas[:, None] >= 0, axis=0).argmax(axis=0).clip(max=len(log_sigmas) - 2)
    low, high = log_sigmas[below], log_sigmas[below + 1]
    share = np.clip((low - levels) / (low - high), 0, 1)
    timesteps: Array = (1 - share) * below + share * (below + 1)
    return timesteps
