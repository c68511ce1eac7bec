"""Dictionaries whose rows have k active latents on average, and the threshold that gives them so many."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor

from monoeval.adapters.base import SparseRows
from monoeval.adapters.dictionary import TrainedDictionary
from monoeval.adapters.rows import TrainingRows

log = logging.getLogger("monoeval")


class VariableL0(TrainedDictionary):
    """A dictionary whose rows have k active latents on average, not each.

    Its codes are sparse rows with as many places as the fullest training row needs, and more in a chunk with a
    fuller row. Where that is above a quarter of the width, they are dense.
    """

    places: int = 0
    """Places of a sparse row; 0: codes are dense."""

    @abstractmethod
    def active(self, h_nm: Tensor) -> Tensor:
        """Codes [n, M], dense."""

    def activate(self, h_nm: Tensor) -> Tensor | SparseRows:
        z_nm = self.active(h_nm)
        if not self.places:
            return z_nm
        rows, indices = (z_nm != 0).nonzero(as_tuple=True)  # none is negative, and NaN is not dropped
        return packed(rows, indices, z_nm[rows, indices], z_nm.shape, self.places)

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        self.places = 0
        super().fit(rows, seed=seed)
        # rounding at a threshold depends on the batch: spare places keep chunks of training rows alike
        needed = 8 * math.ceil((self.measures["l0_max"] + 1) / 8)
        self.places = needed if needed <= self.width / 4 else 0
        if abs(self.measures["l0"] / self.k - 1) > 0.1:
            log.warning(
                "%s has %.1f active latents a training row, not the %d asked for: compare it with controls that "
                "have as many.", self.method, self.measures["l0"], self.k,
            )  # fmt: skip
        return self

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "places": torch.tensor(self.places)}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.places = int(state["places"])
        return super().restore(state)

    def _active_untrained(self) -> float:
        return self.measures["l0"]

    @torch.no_grad()
    def _threshold(self, rows: TrainingRows) -> float:
        """θ of the training rows such that k latents a row have h > θ on average: the (1 − k/M) quantile of
        ReLU(h), exactly; 0 where fewer are positive."""
        size = max(1, min(4096, (1 << 24) // self.width))
        return kth_largest(
            lambda: (self.pre_activations(self.scaled(chunk_nd)) for chunk_nd in rows.chunks(size)),
            self.k * len(rows) + 1,
        )


def kth_largest(chunks: Callable[[], Iterator[Tensor]], rank: int) -> float:
    """The `rank`-th largest (from 1) of the positive float32 numbers in all chunks; 0 where fewer are positive.

    `chunks` is called twice and must give the same numbers. Positive floats are ordered as their bits are, so the
    first pass counts the upper 16 bits and the second the lower 16 within the bin that holds the rank: exact, in
    memory that does not grow with the numbers.
    """

    def bits() -> Iterator[Tensor]:
        return (chunk[chunk > 0].view(torch.int32) for chunk in chunks())

    upper = sum(torch.bincount(b >> 16, minlength=1 << 15).cpu() for b in bits())
    assert isinstance(upper, Tensor)
    if int(upper.sum()) < rank:
        return 0.0
    high, rank = _bin_of(upper, rank)
    lower = sum(torch.bincount(b[b >> 16 == high] & 0xFFFF, minlength=1 << 16).cpu() for b in bits())
    assert isinstance(lower, Tensor)
    low, _ = _bin_of(lower, rank)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest, and its rank within that bin."""
    above = counts.flip(0).cumsum(0).flip(0)  # how many lie in each bin and those above it
    place = int((above >= rank).nonzero()[-1])
    return place, rank - int(above[place] - counts[place])


def packed(rows: Tensor, indices: Tensor, values: Tensor, shape: torch.Size, least: int = 1) -> SparseRows:
    """Sparse rows of `values` at (`rows`, `indices`) of a matrix [n, M]; `rows` ascend.

    All rows have as many places as the fullest needs, at least `least`.
    """
    n, width = shape
    counts = torch.bincount(rows, minlength=n)
    places = max(least, int(counts.max())) if n else least
    at = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    padded = values.new_zeros(n, places).index_put((rows, at), values)
    where = indices.new_zeros(n, places).index_put((rows, at), indices)
    return SparseRows(padded, where, width)
