"""Tie a torch module to flat vectors: its parameters become views of theta, their gradients views of G."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.runtime.keys import of_module
from lib.vectors.batch_norm import statistics
from lib.vectors.layout import Layout

# theta [D] -> (loss, G [D]): all that a loop knows of a model. The loss may be a tensor [] that is left on the device.
Objective = Callable[[Tensor], tuple[float | Tensor, Tensor]]


@dataclass(frozen=True)
class Differentiable:
    """An objective made of a loss that torch can differentiate: theta [D] -> (loss, G [D]).

    Attributes:
        loss: theta [D] -> [].
    """

    loss: Callable[[Tensor], Tensor]

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss [] and its gradient."""
        theta = theta.detach().requires_grad_()
        loss = self.loss(theta)
        return loss.detach(), torch.autograd.grad(loss, theta)[0]

    def hessian_product(self, theta: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at theta times a direction [D]."""
        theta = theta.detach().requires_grad_()
        gradient = torch.autograd.grad(self.loss(theta), theta, create_graph=True)[0]
        return torch.autograd.grad(gradient, theta, direction)[0]


class FlatModel:
    """A module whose parameters, or some of them, are views into one flat vector.

    Moving the model to another point of R^D swaps pointers and copies nothing, and after `backward()` the gradient
    with respect to the whole vector is ready in `gradient`.

    Args:
        module: the module.
        device: where it computes.
        parts: see `lib.concrete.sharding`.
        names: which parameters belong to the vector, by default all that can be trained; the others stay as they are.

    Attributes:
        module: the wrapped module; its parameters are replaced by views.
        layout: where each parameter lies.
        gradient: G [D], written by `backward()`.
        initial_statistics: BatchNorm's running statistics as they were at the start, the pre-trained model's; {}
            without BatchNorm. They are no parameters: see `lib.vectors.batch_norm`.

    Raises:
        ValueError: if a named parameter is frozen: no gradient would reach it, and weight decay would move it.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        parts: int = 1,
        names: Collection[str] | None = None,
    ) -> None:
        self.module = module.to(device)
        parameters = dict(module.named_parameters())
        chosen = [name for name, own in parameters.items() if own.requires_grad] if names is None else names
        self._parameters = {name: parameters[name] for name in chosen}
        if frozen := [name for name, own in self._parameters.items() if not own.requires_grad]:
            raise ValueError(f"parameter '{frozen[0]}' is frozen: call requires_grad_() on it, or leave it out")
        self.layout = Layout.of(self._parameters, parts=parts)
        self.gradient = torch.zeros(self.layout.length, device=device)
        self._gradient_views = self.layout.views(self.gradient)
        self.initial_statistics = statistics(self.module)

    def determines(self) -> dict[str, object]:
        """What a result depends on beside theta, for keys: architecture, frozen parts, the statistics at the start."""
        given = {*self.layout.names, *self.initial_statistics}
        parts = {"module": of_module(self.module, without=given), "layout": self.layout}
        return parts | {"initial_statistics": self.initial_statistics}

    def initial(self) -> Tensor:
        """A flat copy of the module's present parameters: theta [D]."""
        return self.layout.flatten(self._parameters, out=torch.zeros_like(self.gradient))

    def move_to(self, theta: Tensor) -> nn.Module:
        """Place the module at theta [D] (no copy: the parameters are views of it) and set the gradient to zero.

        Raises:
            ValueError: if theta has the wrong length.
        """
        for name, view in self.layout.views(theta.detach()).items():
            parameter = self._parameters[name]
            parameter.grad = None  # torch checks a new .data against the old .grad
            parameter.data = view
            parameter.grad = self._gradient_views[name]
        self.gradient.zero_()
        return self.module

    def slope(self, loss: Tensor, direction: Tensor) -> Tensor:
        """The derivative of a loss along a direction [D], at which the module is; its `backward()` writes H d.

        Args:
            loss: of the module's present parameters, [].
            direction: d [D].
        """
        gradients = torch.autograd.grad(loss, list(self._parameters.values()), create_graph=True, allow_unused=True)
        parts = zip(gradients, self.layout.views(direction).values(), strict=True)
        return torch.stack([(own * view).sum() for own, view in parts if own is not None]).sum()
