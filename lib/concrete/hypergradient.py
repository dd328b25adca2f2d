r"""The part of the mask's gradient that the first-order rule of the paper leaves out.

The inner level moves the coefficients by a step that depends on the mask: lambda* = step(g), with
g_{t,l} = sum_{i in l} G_i(theta) m_hat_i tau_{t,i} at theta = theta0 + m_hat S_0. With v = dLoss/dg, pulled back from
dLoss/dlambda* through the step, and w = sum_t v_t tau_t,

    sum v g = sum_i G_i(theta) m_hat_i w_i
    d/dm_hat_i = G_i w_i + S_{0,i} [H (m_hat w)]_i,      H: Hessian of the loss at theta

so the whole is one more product [D] beside the first-order G S, followed by the same closed form. The Hessian is only
needed along one direction, as a central difference of two gradients: an objective is never asked for more than G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.vectors.flat_model import Objective


def hessian_product(objective: Objective, theta: Tensor, direction: Tensor) -> Tensor:
    """H d by central differences of G: the error falls with the square of a step of (rounding error)^(1/3).

    Args:
        objective: theta -> (loss, G).
        theta: [D].
        direction: d [D].

    Returns:
        [D].
    """
    length = direction.norm()
    if length == 0:
        return torch.zeros_like(theta)
    step = torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + theta.norm()) / length
    ahead = objective(theta + step * direction)[1].clone()
    return (ahead - objective(theta - step * direction)[1]) / (2 * step)


def second_order(
    objective: Objective, theta: Tensor, gradient: Tensor, rescaled_mask: Tensor, weighted: Tensor, summed: Tensor
) -> Tensor:
    """What to add to G S before the closed form of dLoss/dx.

    Args:
        objective: the inner level's.
        theta: where the inner gradient was taken [D].
        gradient: G there [D].
        rescaled_mask: m_hat [D].
        weighted: w = sum_t v_t tau_t [D].
        summed: S_0, the sum at the initial coefficients [D].

    Returns:
        G w + S_0 H (m_hat w), [D].
    """
    return gradient * weighted + summed * hessian_product(objective, theta, rescaled_mask * weighted)
