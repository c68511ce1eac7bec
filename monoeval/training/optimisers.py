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
        self.parameters = list(parameters)
        self.velocities = [torch.zeros_like(parameter) for parameter in parameters]
        self.trust, self.momentum, self.weight_decay = trust, momentum, weight_decay
        self.clip, self.layers = clip, layers

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step along `gradients`, one a parameter and shaped like it."""
        torch._foreach_mul_(self.velocities, self.momentum)
        each = list(zip(self.parameters, self.velocities, gradients, strict=True))
        vectors = [(v, g) for w, v, g in each if w.ndim - self.layers <= 1]
        if vectors:
            torch._foreach_add_(*map(list, zip(*vectors, strict=True)))
        matrices = [parts for parts in each if parts[0].ndim - self.layers > 1]
        scales = self._scales([w for w, _, _ in matrices], [g for _, _, g in matrices], rate)
        for (w, v, g), (scale, decay) in zip(matrices, scales, strict=True):
            v.addcmul_(g, scale).addcmul_(w, decay)
        torch._foreach_sub_(self.parameters, self.velocities, alpha=rate)

    def _scales(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], rate: float
    ) -> list[tuple[Tensor, Tensor]]:
        """λ and λβ of the layers of each parameter, shaped to multiply it; all are worked out at once."""
        if self.trust is None or not weights:
            one = self.velocities[0].new_ones(())
            return [(one, one * self.weight_decay)] * len(weights)
        weight_norms, gradient_norms = map(self._norms, (weights, gradients))
        weight_norm, gradient_norm = (
            torch.cat([n.flatten() for n in ns]) for ns in (weight_norms, gradient_norms)
        )
        scale = self.trust * weight_norm / (gradient_norm + self.weight_decay * weight_norm)
        if self.clip:
            scale = (scale / rate).clamp(max=1)
        zero = (weight_norm == 0) | (gradient_norm == 0)
        both = scale.masked_fill(zero, 1), (scale * self.weight_decay).masked_fill(zero, 0)
        sizes = [norm.numel() for norm in weight_norms]
        parts = zip(*(torch.split(of, sizes) for of in both), weight_norms, strict=True)
        return [(scale.view_as(norm), decay.view_as(norm)) for scale, decay, norm in parts]

    def _norms(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of each layer of each tensor, with the dimensions of the tensor."""
        own = [tuple(range(self.layers, tensor.ndim)) for tensor in tensors]
        return [torch.linalg.vector_norm(t, dim=dim, keepdim=True) for t, dim in zip(tensors, own, strict=True)]

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
