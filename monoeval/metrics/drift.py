"""How far a corruption of the images moves their codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.metrics.dictionary import ExplainedVariance, rebuilt
from monoeval.metrics.streams import Entries, active


@dataclass(frozen=True)
class Drift:
    """Codes of the same rows, clean and corrupted; means over rows, NaN for no rows."""

    jaccard: float
    """Latents active in both over latents active in either, 1 where neither has any. It is 1 by construction where
    all latents are always active, as in signed dense codes; the cosine can be compared across arms."""
    cosine: float
    """Between the two codes of a row; 0 where one of them is zero, 1 where both are."""
    l0_clean: float
    l0_corrupted: float
    explained_clean: float
    """Explained variance, about the mean of the clean rows; NaN where the adapter has no way back to features."""
    explained_corrupted: float
    """The same of the corrupted rows, about their own mean."""

    @property
    def l0_shift(self) -> float:
        return self.l0_corrupted - self.l0_clean

    @property
    def explained_shift(self) -> float:
        return self.explained_corrupted - self.explained_clean


def drift(clean: Codes, corrupted: Codes, rows: Ints | None = None) -> Drift:
    """Compare two codes of `rows` (all where None) by one adapter, in one pass over both.

    Raises MonoevalError where the two have unequal numbers of rows or of latents.
    """
    if (len(clean), clean.width) != (len(corrupted), corrupted.width):
        raise MonoevalError(
            f"Clean codes are {len(clean):,} by {clean.width:,} and corrupted ones {len(corrupted):,} by "
            f"{corrupted.width:,}: encode the same rows with one adapter."
        )
    sums = torch.zeros(4, dtype=torch.float64, device=clean.device)
    n = 0
    explained = ExplainedVariance(), ExplainedVariance()
    for pair in zip(rebuilt(clean, rows), rebuilt(corrupted, rows), strict=True):
        one, other = pair[0][0], pair[1][0]
        if isinstance(one, SparseRows) and isinstance(other, SparseRows):
            compared = _compare_sparse(one, other)
        else:  # an adapter may give either kind, and the smaller one is not large then
            compared = _compare_dense(_dense(one), _dense(other))
        sums += compared.sum(0)
        n += len(compared)
        for share, (_, features_nd, again_nd) in zip(explained, pair, strict=True):
            if again_nd is not None:
                share.add(features_nd, again_nd)
    jaccard, cosine, l0_clean, l0_corrupted = (sums / n if n else sums + torch.nan).tolist()
    return Drift(jaccard, cosine, l0_clean, l0_corrupted, explained[0].value(), explained[1].value())


def _compare_dense(one_nm: Tensor, other_nm: Tensor) -> Tensor:
    """Jaccard, cosine and both L0 of each row, float64 [n, 4]."""
    one, other = one_nm.double(), other_nm.double()
    here, there = active(one), active(other)
    return _compared(
        (here & there).sum(1),
        here.sum(1),
        there.sum(1),
        (one * other).sum(1),
        torch.linalg.vector_norm(one, dim=1),
        torch.linalg.vector_norm(other, dim=1),
    )


def _compare_sparse(one: SparseRows, other: SparseRows) -> Tensor:
    """As `_compare_dense`, by sorting the entries of both: equal neighbours are entries of one row and latent."""
    n = len(one.values)
    here, there = Entries.of(one), Entries.of(other)
    cells, order = torch.cat([e.rows * one.width + e.latents for e in (here, there)]).sort()
    values, is_active = (
        torch.cat([here.values, there.values])[order],
        torch.cat([here.active, there.active])[order],
    )
    shared = cells[1:] == cells[:-1]
    rows = cells[1:][shared] // one.width
    products = (values[1:] * values[:-1])[shared]
    both = (is_active[1:] & is_active[:-1])[shared]
    return _compared(
        torch.bincount(rows[both], minlength=n),
        torch.bincount(here.rows[here.active], minlength=n),
        torch.bincount(there.rows[there.active], minlength=n),
        products.new_zeros(n).index_add_(0, rows, products),
        torch.linalg.vector_norm(one.values.double(), dim=1),
        torch.linalg.vector_norm(other.values.double(), dim=1),
    )


def _compared(
    both: Tensor, here: Tensor, there: Tensor, product: Tensor, length: Tensor, other_length: Tensor
) -> Tensor:
    either = here + there - both
    lengths = length * other_length
    jaccard = torch.where(either > 0, both / either, 1.0)
    cosine = torch.where(lengths > 0, product / lengths, ((length == 0) & (other_length == 0)).double())
    return torch.stack([jaccard, cosine, here, there], dim=1)


def _dense(codes: Tensor | SparseRows) -> Tensor:
    return codes.dense() if isinstance(codes, SparseRows) else codes
