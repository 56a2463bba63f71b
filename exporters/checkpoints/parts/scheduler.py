"""`scheduler_config.json` of diffusers: the noise schedule and the solver that a pipeline was saved with."""

from __future__ import annotations

from typing import Any

from exporters.checkpoints.files.config import Config

_METHODS = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "PNDMScheduler": "pndm"}
#: Defaults that differ from class to class.
_SPACINGS = {"ddim": "leading", "euler": "linspace", "pndm": "leading"}
_ALPHA_TO_ONE = {"ddim": True, "euler": True, "pndm": False}


def read_scheduler(config: Config) -> dict[str, Any]:
    """The component that a scheduler's config describes.

    Raises:
        CheckpointError: another class or option; diffusers itself loads one of these from any of its configs.
    """
    method = _METHODS[config.require("_class_name", tuple(_METHODS), "")]
    config.require("trained_betas", (None,), None)
    config.require("rescale_betas_zero_snr", (False,), False)
    config.require("thresholding", (False,), False)
    if method == "euler":
        config.require("interpolation_type", ("linear",), "linear")
        config.require("use_exponential_sigmas", (False,), False)
        config.require("use_beta_sigmas", (False,), False)
        config.require("timestep_type", ("discrete",), "discrete")
        config.require("final_sigmas_type", ("zero",), "zero")
        config.require("sigma_min", (None,), None)
        config.require("sigma_max", (None,), None)
    if method == "pndm":
        config.require("skip_prk_steps", (True,), False)
    scheduler = {
        "kind": "diffusion.scheduler",
        "method": method,
        "num_train_timesteps": config.take("num_train_timesteps", int, 1000),
        "beta_start": config.take("beta_start", float, 0.0001),
        "beta_end": config.take("beta_end", float, 0.02),
        "beta_schedule": config.require("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"), "linear"),
        "prediction_type": config.require("prediction_type", ("epsilon", "v_prediction", "sample"), "epsilon"),
        "timestep_spacing": config.require("timestep_spacing", ("leading", "trailing", "linspace"), _SPACINGS[method]),
        "steps_offset": config.take("steps_offset", int, 0),
        "set_alpha_to_one": config.take("set_alpha_to_one", bool, _ALPHA_TO_ONE[method]),
    }
    if method == "ddim" and config.take("clip_sample", bool, True):
        scheduler["clip_sample"] = config.take("clip_sample_range", float, 1.0)
    if method == "euler" and config.take("use_karras_sigmas", bool, False):
        scheduler["karras_sigmas"] = True
    return scheduler
