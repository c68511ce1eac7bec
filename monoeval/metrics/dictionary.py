"""Measures of a dictionary: how alike its rows are, whether another seed finds the same ones, what it explains."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics.streams import chunk_rows

BLOCK = 1024
WIDEST_EXACT = 4096
"""Up to this many rows dictionaries are matched exactly; the Hungarian method takes time that grows with M³."""


@dataclass(frozen=True)
class Coherence:
    """|cos| between the rows of a dictionary; rows of random directions in D have √(2 / πD) on average."""

    mean: float
    """Over all pairs."""
    nearest: float
    """Of each row with the row most like it, averaged."""
    max: float
    """Of the most alike pair (mutual coherence)."""


@torch.no_grad()
def coherence(directions_md: Tensor) -> Coherence:
    """How alike the rows of a dictionary [M, D] are; rows of zeros are left out, NaN with fewer than two rows.

    Cosines are float32 in blocks of rows, sums float64: there is never an M × M matrix.
    """
    unit = F.normalize(directions_md[directions_md.any(dim=1)].float(), dim=1)
    m = len(unit)
    if m < 2:
        return Coherence(float("nan"), float("nan"), float("nan"))
    nearest = unit.new_zeros(m)
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    for start in range(0, m, BLOCK):
        stop = min(start + BLOCK, m)
        cosines = (unit[start:stop] @ unit[start:].T).abs_()  # this block and those after it
        cosines.diagonal().zero_()
        total += cosines[:, stop - start :].sum(dtype=torch.float64) * 2
        total += cosines[:, : stop - start].sum(dtype=torch.float64)
        nearest[start:stop] = torch.maximum(nearest[start:stop], cosines.amax(1))
        nearest[start:] = torch.maximum(nearest[start:], cosines.amax(0))
    nearest = nearest.double().clamp(max=1)
    return Coherence(float(total) / (m * (m - 1)), float(nearest.mean()), float(nearest.max()))


@dataclass(frozen=True)
class Stability:
    """Mean cosine of matched rows of two dictionaries."""

    cosine: float
    chance: float
    """The first dictionary matched with random directions, as many as the second has."""
    exact: bool
    """Whether the matchings are the best there are; else the figures may be too low."""


def stability(a_md: Tensor, b_md: Tensor, *, seed: int = 0, either_sign: bool = False) -> Stability:
    """How well rows of a dictionary [M, D] are found again in another one [M', D], one to one.

    Up to `WIDEST_EXACT` rows the matching has the largest sum of cosines (Hungarian method). For more, rows that
    are each other's nearest are matched and taken away, again and again, until the rest can be matched exactly (or
    hardly any are: then the rest is matched block by block); `chance` is computed by the same rule. With
    `either_sign` a row and its negative are one, as in ICA. A row of zeros counts as cosine 0. NaN where a
    dictionary has no row.

    Raises MonoevalError where widths differ or a direction is not finite.
    """
    if a_md.shape[1] != b_md.shape[1]:
        raise MonoevalError(
            f"Dictionaries over {a_md.shape[1]:,} and {b_md.shape[1]:,} features cannot be compared: "
            "take both from one layer of one backbone."
        )
    if not bool(torch.isfinite(a_md).all() and torch.isfinite(b_md).all()):
        raise MonoevalError("A dictionary has directions that are not finite: fit its adapter again.")
    if not len(a_md) or not len(b_md):
        return Stability(float("nan"), float("nan"), True)
    generator = torch.Generator().manual_seed(draw_seed("stability", seed))
    random_md = torch.randn(b_md.shape, generator=generator).to(b_md.device)
    cosine, chance = (_matched(a_md, other, either_sign) for other in (b_md, random_md))
    return Stability(cosine, chance, max(len(a_md), len(b_md)) <= WIDEST_EXACT)


@torch.no_grad()
def _matched(a_md: Tensor, b_md: Tensor, either_sign: bool) -> float:
    """The mean cosine of a matching of all rows of the smaller dictionary."""
    a, b = F.normalize(a_md.float(), dim=1), F.normalize(b_md.float(), dim=1)
    pairs, total = min(len(a), len(b)), 0.0
    while min(len(a), len(b)) > 0 and max(len(a), len(b)) > WIDEST_EXACT:
        nearest_b, nearest_a = _nearest(a, b, either_sign)
        mutual = nearest_a[nearest_b] == torch.arange(len(a), device=a.device)
        partners = nearest_b[mutual]
        if 100 * len(partners) < min(len(a), len(b)):  # rows that are nearly equal all choose the same one
            break
        cosines = (a[mutual] * b[partners]).sum(1, dtype=torch.float64)
        total += float((cosines.abs() if either_sign else cosines).sum())
        left = torch.ones(len(b), dtype=torch.bool, device=b.device)
        left[partners] = False
        a, b = a[~mutual], b[left]
    # the larger dictionary may have blocks to spare
    for part, other in zip(torch.split(a, WIDEST_EXACT), torch.split(b, WIDEST_EXACT), strict=False):
        cosines_ab = (part @ other.T).double().cpu().numpy()
        if either_sign:
            cosines_ab = np.abs(cosines_ab)
        rows, columns = linear_sum_assignment(cosines_ab, maximize=True)
        total += float(cosines_ab[rows, columns].sum())
    return total / pairs


def _nearest(a_md: Tensor, b_md: Tensor, either_sign: bool) -> tuple[Tensor, Tensor]:
    """For each row of one dictionary the place of its nearest in the other, both ways."""
    of_a = []
    best = a_md.new_full((len(b_md),), -torch.inf)
    of_b = torch.zeros(len(b_md), dtype=torch.int64, device=b_md.device)
    for start in range(0, len(a_md), BLOCK):
        cosines = a_md[start : start + BLOCK] @ b_md.T
        if either_sign:
            cosines.abs_()
        of_a.append(cosines.argmax(1))
        here, place = cosines.max(0)
        of_b = torch.where(here > best, place + start, of_b)
        best = torch.maximum(best, here)
    return torch.cat(of_a), of_b


class ExplainedVariance:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² with x̄ the mean of each feature over the rows taken in; float64, one pass."""

    def __init__(self) -> None:
        self._n = 0
        self._missed: float | Tensor = 0.0
        self._squares: float | Tensor = 0.0

    def add(self, features_nd: Tensor, rebuilt_nd: Tensor) -> None:
        """Take in rows x and what was made of them, x̂ [n, D] both."""
        x = features_nd.double()
        if self._n == 0:
            self._origin = x[:1]  # sums of squares about a row do not cancel where the mean is large
            self._sum = torch.zeros_like(x[0])
        self._n += len(x)
        self._missed += (x - rebuilt_nd.double()).square().sum()
        moved = x - self._origin
        self._squares += moved.square().sum()
        self._sum += moved.sum(0)

    def value(self) -> float:
        """The share so far; NaN for no rows and for rows that are all equal."""
        if self._n == 0:
            return float("nan")
        spread = float(self._squares - self._sum.square().sum() / self._n)
        return 1 - float(self._missed) / spread if spread > 1e-12 * float(self._squares) else float("nan")


@torch.no_grad()
def rebuilt(codes: Codes, rows: Ints | None = None) -> Iterator[tuple[Tensor | SparseRows, Tensor, Tensor | None]]:
    """Codes of `rows` in order, in chunks, with the features they came from and what `decode` makes of them."""
    for features_nd in codes.features.chunks(rows, chunk_rows(codes.width)):
        x = features_nd.to(codes.device)
        encoded = codes.adapter.encode(x)
        yield encoded, x, codes.adapter.decode(encoded)


def explained_variance(codes: Codes, rows: Ints | None = None) -> float:
    """The share of the variance of the features of `rows` that their codes explain (`ExplainedVariance`).

    NaN where the adapter has no way back to features.
    """
    share = ExplainedVariance()
    for _, features_nd, again_nd in rebuilt(codes, rows):
        if again_nd is None:
            return float("nan")
        share.add(features_nd, again_nd)
    return share.value()
