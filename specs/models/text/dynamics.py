"""INL dynamics: a hidden state with a velocity, drawn to a learned place and damped on the way.

    error = h - mu
    v' = alpha v - beta error            alpha in (0, 1), beta in (0, beta_max), both learned, per token and channel
    h' = h + dt gate v'                  gate in (0, 1)

A second-order update (a damped spring) beside a residual stream: mu is where the state is drawn to, beta how hard,
alpha how long a movement lasts.

Stability. With alpha, beta and k = dt gate held, error and velocity follow

    [e']   [1 - k beta   k alpha] [e]
    [v'] = [  -beta       alpha ] [v]        determinant alpha, trace 1 - k beta + alpha

and by Jury's criterion both eigenvalues lie inside the unit circle exactly when alpha < 1, k beta > 0 and
k beta < 2 (1 + alpha). With alpha > 0 and gate < 1 that holds for every token whenever

    dt beta_max <= 2                          (BOUND)

which the module requires. It says nothing of coefficients that change from step to step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specs.components.text.dynamics import STABILITY_BOUND

#: Of dt * beta_max; see above.
BOUND = STABILITY_BOUND


class INLDynamics(nn.Module):
    """Hidden state [..., C] and velocity [..., C] -> both, a step later.

    Args:
        hidden_size: C.
        beta_max: the hardest pull.
        dt: the step; `dt * beta_max` may be at most BOUND.

    Raises:
        ValueError: a step that could grow without end.
    """

    def __init__(self, hidden_size: int, beta_max: float = 2.0, *, dt: float = 1.0) -> None:
        super().__init__()
        if not (beta_max > 0 and dt > 0 and dt * beta_max <= BOUND):
            raise ValueError(
                f"dt * beta_max must be above 0 and at most {BOUND:g} for every step to be stable,"
                f" got {dt * beta_max:g}"
            )
        self.beta_max, self.dt = beta_max, dt
        self.mu = nn.Parameter(torch.zeros(hidden_size))
        self.controller = nn.Linear(2 * hidden_size, 3 * hidden_size)

    def forward(self, hidden: Tensor, velocity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step; a state that has no velocity yet starts at rest."""
        if velocity is None:
            velocity = torch.zeros_like(hidden)
        alpha, beta, gate = self.compute_coefficients(hidden, velocity)
        velocity = alpha * velocity - beta * (hidden - self.mu)
        return hidden + self.dt * gate * velocity, velocity

    def compute_coefficients(self, hidden: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha in (0, 1), beta in (0, beta_max) and gate in (0, 1), each [..., C]."""
        alpha, beta, gate = self.controller(torch.cat([hidden, velocity], dim=-1)).sigmoid().chunk(3, dim=-1)
        return alpha, self.beta_max * beta, gate
