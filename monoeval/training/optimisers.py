"""LARS, for many layers at once, and AdamW behind the same two methods.

LARS is no `torch.optim.Optimizer`: making one imports dynamo, which takes 4 s.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LARS:
    """Layer-wise adaptive rate scaling with momentum (You, Gitman and Ginsburg 2017, arXiv 1708.03888, eq. 6).

    For the weights w of a layer, with gradient g, rate γ, momentum μ and weight decay β:
    λ = trust·‖w‖ / (‖g‖ + β‖w‖); v ← μv + λ(g + βw); w ← w - γv. The rate stands outside the velocity, as in
    torch's SGD, while the paper's algorithm 1 has it inside: the same as long as it is constant. With `clip`,
    γλ becomes min(λ, γ), so that no layer moves faster than under SGD. Biases and other vectors are neither
    scaled nor decayed, nor is a layer whose weights or gradient are all zero. Where `trust` is None, λ is 1:
    SGD with momentum.

    The first `layers` dimensions of every parameter index layers of their own: a stack of P linear classifiers
    has weights [P, C, M] and biases [P, C], and each classifier its own λ. Parameters are changed in place.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        trust: float | None = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        clip: bool = False,
        layers: int = 0,
    ) -> None:
        self.parameters = parameters
        self.velocities = [torch.zeros_like(parameter) for parameter in parameters]
        self.trust, self.momentum, self.weight_decay = trust, momentum, weight_decay
        self.clip, self.layers = clip, layers

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step along `gradients`, one a parameter and shaped like it."""
        for parameter, velocity, gradient in zip(self.parameters, self.velocities, gradients, strict=True):
            velocity.mul_(self.momentum)
            if parameter.ndim - self.layers > 1:
                scale, decay = self._scales(parameter, gradient, rate)
                velocity.addcmul_(gradient, scale).addcmul_(parameter, decay)
            else:
                velocity.add_(gradient)
            parameter.sub_(velocity, alpha=rate)

    def _scales(self, parameter: Tensor, gradient: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """λ and λβ of each layer, shaped to multiply its weights."""
        own = tuple(range(self.layers, parameter.ndim))
        if self.trust is None:
            one = parameter.new_ones(())
            return one, one * self.weight_decay
        weight_norm = torch.linalg.vector_norm(parameter, dim=own, keepdim=True)
        gradient_norm = torch.linalg.vector_norm(gradient, dim=own, keepdim=True)
        scale = self.trust * weight_norm / (gradient_norm + self.weight_decay * weight_norm)
        if self.clip:
            scale = (scale / rate).clamp(max=1)
        zero = (weight_norm == 0) | (gradient_norm == 0)
        return scale.masked_fill(zero, 1), (scale * self.weight_decay).masked_fill(zero, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"velocities": list(self.velocities)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, kept in zip(self.velocities, state["velocities"], strict=True):
            mine.copy_(kept)


class AdamW:
    """torch's AdamW behind the interface of LARS, fused."""

    def __init__(self, parameters: Sequence[Tensor], *, weight_decay: float) -> None:
        self._inner = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)

    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step along `gradients`, which are those that torch keeps beside the parameters."""
        self._inner.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(self._inner.param_groups[0]["params"], gradients, strict=True):
            parameter.grad = gradient
        self._inner.step()

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)


def optimiser(name: str, parameters: Sequence[Tensor], weight_decay: float) -> AdamW | LARS:
    """`adamw`, `lars` (trust 0.02, clipped) or `sgd`; the latter two with momentum 0.9."""
    if name == "adamw":
        return AdamW(parameters, weight_decay=weight_decay)
    return LARS(parameters, trust=0.02 if name == "lars" else None, weight_decay=weight_decay, clip=name == "lars")
