"""The training rows of an adapter: in memory where they fit, else read from disk batch by batch."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError

IN_MEMORY_BYTES = 64 << 20
"""Rows of more bytes are read from disk batch by batch on a CPU. The system keeps the pages of mapped files while
it has memory for them, and a copy would only take that away: of 1.3 million rows of 768 features it is 4 GB, and
as much again for each view."""
IN_DEVICE_MEMORY_BYTES = 4 << 30
"""The same on another device, where each batch would have to be moved."""


class Batches(Protocol):
    """What a training loop draws from: so many images, and features of those at some positions."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor) -> Tensor: ...


def shuffled(rows: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Batches of `size` positions without end; a pass is shuffled anew, and its last, smaller batch left out."""
    while True:
        for positions in torch.split(torch.randperm(rows, generator=order), size):
            if len(positions) == size:
                yield positions


class TrainingRows:
    """What an adapter may see: `rows` of `features` (all where None), as float32 on `device`, with their moments.

    `views` are features of the same rows under augmentation, one set a view, for the methods that ask for them.
    Reading the moments raises MonoevalError where a feature is not finite or all of them are constant.
    """

    def __init__(
        self, features: FeatureSet, rows: Ints | None, device: torch.device, views: Sequence[FeatureSet] = ()
    ) -> None:
        self.rows = np.arange(features.n) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(self.rows) == 0:
            raise MonoevalError("An adapter needs at least one training row, and there is none.")
        self.width, self.device = features.width, device
        self.features, self._views = features, views

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _whole(self) -> Tensor | None:
        most = IN_MEMORY_BYTES if self.device.type == "cpu" else IN_DEVICE_MEMORY_BYTES
        fits = len(self.rows) * self.width * 4 <= most
        return self.features.load(self.rows).to(self.device) if fits else None

    @cached_property
    def views(self) -> "list[TrainingRows]":
        """The same rows in each augmented view."""
        return [TrainingRows(view, self.rows, self.device) for view in self._views]

    def batch(self, positions: Tensor) -> Tensor:
        """The features [B, D] at `positions` [B] (int64 on the CPU) of the training rows."""
        if self._whole is not None:
            return self._whole[positions.to(self.device)]
        return self.features.load(self.rows[positions.numpy()]).to(self.device)

    def chunks(self, size: int = 4096) -> Iterator[Tensor]:
        """All rows in order, at most `size` at a time."""
        for positions in torch.split(torch.arange(len(self)), size):
            yield self.batch(positions)

    @cached_property
    def mean(self) -> Tensor:
        """The mean of each feature, float64 [D]."""
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        unusable = 0
        for chunk in self.chunks():
            unusable += int((~torch.isfinite(chunk).all(dim=1)).sum())
            total += chunk.sum(dim=0, dtype=torch.float64)
        if unusable:
            raise MonoevalError(
                f"{unusable:,} of {len(self):,} training rows have features that are not finite: "
                "check the backbone, or extract with --precision fp32."
            )
        return total / len(self)

    @cached_property
    def variance(self) -> Tensor:
        """The variance of each feature (divided by the number of rows), float64 [D]."""
        total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for chunk in self.chunks():
            total += (chunk - self.mean).square().sum(dim=0)
        variance = total / len(self)
        floor = 1e-12 * (self.mean.square() + variance)  # what rounding leaves of a constant
        variance = torch.where(variance > floor, variance, 0.0)
        if not (variance > 0).any():
            raise MonoevalError(
                f"All {self.width:,} features are constant over the {len(self):,} training rows: "
                "there is nothing to fit, so check the backbone and its preprocessing."
            )
        return variance
