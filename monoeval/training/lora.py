"""Low-rank changes to the linear layers of a frozen network: LoRA, and its monosemantic form."""

from collections.abc import Sequence
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

    Some modules read the weight of their linear layers and never call them (timm's attention of BEiT, EVA and
    Swin V2; torch's encoder layers in evaluation). `weight` gives them the changed one, so that gradients reach
    both factors there too; a change with act is none of the weight, and asking for it is a UsageError that names
    `alike`: the paths of all layers that such modules have in the same place.
    """

    def __init__(self, frozen: nn.Linear, rank: int, non_negative: bool, alike: Sequence[str] = ()) -> None:
        super().__init__()
        self.frozen, self.non_negative, self.alike = frozen, non_negative, alike
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

    @property
    def weight(self) -> Tensor:
        """W + SCALE · U V, where there is no act."""
        if self.non_negative:
            first, *more = self.alike or ("this layer",)
            others = f" and {len(more)} more ({', '.join(more)})" if more else ""
            raise UsageError(
                f"MonoLoRA cannot change {first}{others}: the network reads its weights without calling it, and a "
                "change with a ReLU inside is none of weights, so choose adapt: lora, or full."
            )
        return self.frozen.weight + SCALE * self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        return self.frozen.bias

    @property
    def in_features(self) -> int:
        return self.frozen.in_features

    @property
    def out_features(self) -> int:
        return self.frozen.out_features

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x)
        return out + SCALE * nn.functional.linear(self.latents(x), self.up)


def insert(
    module: nn.Module, rank: int, adapt: Literal["lora", "monolora"], name: str, skip: str = "projector"
) -> list[LowRank]:
    """Freeze `module`, put a `LowRank` in place of each of its linear layers, and return these.

    What is inside torch's own attention, whose first weights belong to no layer, stays as it is, and so does
    everything under `skip`. Raises UsageError where there is no layer to change; `name` is what it calls the
    model.
    """
    module.requires_grad_(False)
    made = []
    alike: dict[tuple[type[nn.Module], str], list[str]] = {}
    for path, parent in list(module.named_modules()):
        if isinstance(parent, nn.MultiheadAttention | LowRank) or path.split(".")[0] == skip:
            continue
        for key, child in list(parent.named_children()):
            if type(child) is nn.Linear and not (path == "" and key == skip):
                same = alike.setdefault((type(parent), key), [])
                same.append(f"{path}.{key}".removeprefix("."))
                low_rank = LowRank(child, rank, adapt == "monolora", same)
                setattr(parent, key, low_rank)
                made.append(low_rank)
    if not made:
        raise UsageError(
            f"{name} has no linear layers for {adapt} to change: finetune all of it, with --adapt full or, in a "
            "recipe, adapt: full."
        )
    return made


@torch.no_grad()
def activity(layers: list[LowRank], run: nn.Module, batch: Tensor) -> float | None:
    """The mean share of latents that are not zero when `run` sees `batch`, over layers that it calls; None where
    it calls none of them."""
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
    return sum(shares) / len(shares) if shares else None
