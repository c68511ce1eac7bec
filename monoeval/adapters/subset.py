"""Some latents of an adapter, as an adapter: what a probe can read from them alone."""

from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Adapter, SparseRows
from monoeval.adapters.learned import WHOLE
from monoeval.adapters.rows import TrainingRows
from monoeval.data.images import Ints


class Subset(Adapter):
    """The `latents` [m] of a fitted adapter, in rising order; the others are dropped, and there is no way back."""

    method: ClassVar[str] = "subset"

    def __init__(self, whole: Adapter, latents: Ints) -> None:
        self.whole, self.width, self.origin = whole, len(latents), whole.origin
        # whether it was trained is told by these; the rest speaks of latents that are not here
        told_by = {n: v for n, v in whole.measures.items() if n == "steps" or n.startswith("explained_variance")}
        self.measures = {f"{WHOLE}{name}": value for name, value in told_by.items()}
        self.latents = torch.from_numpy(np.sort(latents))
        self._place = torch.full((whole.width,), -1).scatter(0, self.latents, torch.arange(self.width))

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        raise NotImplementedError("the whole adapter is fitted, and then cut")

    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        codes = self.whole.encode(features_nd)
        if isinstance(codes, Tensor):
            return codes[:, self.latents.to(codes.device)]
        place = self._place.to(codes.indices.device)[codes.indices]
        return SparseRows(codes.values.masked_fill(place < 0, 0.0), place.clamp(min=0), self.width)

    def state(self) -> dict[str, Tensor]:
        return self.whole.state()

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.whole.restore(state)
        return self
