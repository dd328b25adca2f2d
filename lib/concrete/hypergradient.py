r"""The part of the mask's gradient that the first-order rule of the paper leaves out.

The inner level moves the coefficients by a step that depends on the mask: lambda* = step(g), with
g_{t,l} = sum_{i in l} G_i(theta) m_hat_i tau_{t,i} at theta = theta0 + m_hat S_0. With v = dLoss/dg, pulled back from
dLoss/dlambda* through the step, and w = sum_t v_t tau_t,

    sum v g = sum_i G_i(theta) m_hat_i w_i
    d/dm_hat_i = G_i w_i + S_{0,i} [H (m_hat w)]_i,      H: Hessian of the loss at theta

so the whole is one more product [D] beside the first-order G S, followed by the same closed form. The Hessian is only
needed along one direction: a second backward pass through the first (Pearlmutter, 1994). A central difference of two
gradients would do for a smooth loss, but in float32 its step is so long that kinks of a real network blur it.
"""

from __future__ import annotations

from torch import Tensor

from lib.vectors.flat_model import Objective


def second_order(
    objective: Objective, theta: Tensor, gradient: Tensor, rescaled_mask: Tensor, weighted: Tensor, summed: Tensor
) -> Tensor:
    """What to add to G S before the closed form of dLoss/dx.

    Args:
        objective: the inner level's, with a method `hessian_product(theta [D], direction [D]) -> [D]`.
        theta: where the inner gradient was taken [D].
        gradient: G there [D].
        rescaled_mask: m_hat [D].
        weighted: w = sum_t v_t tau_t [D].
        summed: S_0, the sum at the initial coefficients [D].

    Returns:
        G w + S_0 H (m_hat w), [D].

    Raises:
        ValueError: if the objective has no such method.
    """
    if not hasattr(objective, "hessian_product"):
        raise ValueError("hypergradient='exact' needs an objective with a method hessian_product(theta, direction)")
    return gradient * weighted + summed * objective.hessian_product(theta, rescaled_mask * weighted)
