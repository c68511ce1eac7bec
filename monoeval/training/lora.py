"""Low-rank changes to the linear layers of a frozen network: LoRA, and its monosemantic form."""

from typing import Literal

import torch
from torch import Tensor, nn

from monoeval.errors import UsageError

SCALE = 2.0
"""α/r of LoRA: the usual α is twice the rank."""


class LowRank(nn.Module):
    """x ↦ W x + b + SCALE · U act(V x), with W and b frozen, V [r, in] and U [out, r] trained.

    LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3) has no act. MonoLoRA (Zhang et al. 2025, arXiv 2410.21331) puts
    a non-negative, sparsifying activation between the factors, here a ReLU, so that each of the r latents adds
    its direction where it is active and nothing elsewhere. U starts at zero: nothing is changed before training.
    """

    def __init__(self, frozen: nn.Linear, rank: int, non_negative: bool) -> None:
        super().__init__()
        self.frozen, self.non_negative = frozen, non_negative
        self.down = nn.Parameter(frozen.weight.new_empty(rank, frozen.in_features))
        self.up = nn.Parameter(frozen.weight.new_zeros(frozen.out_features, rank))
        self.draw()

    def draw(self) -> None:
        """Start anew from torch's global generator."""
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        nn.init.zeros_(self.up)

    def latents(self, x: Tensor) -> Tensor:
        """What lies between the factors, [..., r] for inputs [..., in]."""
        h = nn.functional.linear(x, self.down)
        return h.relu() if self.non_negative else h

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x)
        return out + SCALE * nn.functional.linear(self.latents(x), self.up)


def insert(
    module: nn.Module, rank: int, adapt: Literal["lora", "monolora"], name: str, skip: str = "projector"
) -> list[LowRank]:
    """Freeze `module`, put a `LowRank` in place of each of its linear layers, and return these.

    Layers inside torch's own attention, which reads their weights and never calls them, stay as they are, and so
    does everything under `skip`. Raises UsageError where there is no layer to change; `name` is what it calls
    the model.
    """
    module.requires_grad_(False)
    made = []
    for path, parent in list(module.named_modules()):
        if isinstance(parent, nn.MultiheadAttention | LowRank) or path.split(".")[0] == skip:
            continue
        for key, child in list(parent.named_children()):
            if type(child) is nn.Linear and not (path == "" and key == skip):
                low_rank = LowRank(child, rank, non_negative=adapt == "monolora")
                setattr(parent, key, low_rank)
                made.append(low_rank)
    if not made:
        raise UsageError(
            f"{name} has no linear layers for {adapt} to change: finetune all of it, with adapt: full."
        )
    return made


@torch.no_grad()
def activity(layers: list[LowRank], run: nn.Module, batch: Tensor) -> float:
    """The mean share of latents that are not zero when `run` sees `batch`."""
    shares: list[float] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(layer, LowRank)
        shares.append(float((layer.latents(inputs[0]) != 0).double().mean()))

    handles = [layer.register_forward_hook(look) for layer in layers]
    try:
        run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sum(shares) / len(shares)
