"""Why codes should help a probe: their effective rank, how far apart classes lie, and the probe's margins."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.data.images import Ints
from monoeval.keys import draw_seed
from monoeval.metrics.streams import Entries, checked_labels, chunks

WIDEST_GRAM = 1024
"""Up to this many latents the singular values come from all rows."""
SAMPLED_ROWS = 2048
"""For more latents they come from this many rows at most, which bounds the effective rank."""
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Spectrum:
    """Singular values of codes [n, M], gathered chunk by chunk.

    Up to `WIDEST_GRAM` latents they are the roots of the eigenvalues of ZᵀZ over all rows, else of those of ZZᵀ
    over at most `SAMPLED_ROWS` rows that `seed` draws. Products are float64; sparse codes stay sparse.
    """

    def __init__(self, width: int, n_rows: int, seed: int) -> None:
        self._wide = width > WIDEST_GRAM
        self._gram = np.zeros((1, 1) if self._wide else (width, width))
        self._parts: list[NDArray[np.float64] | csr_array] = []
        used = min(n_rows, SAMPLED_ROWS) if self._wide else n_rows
        generator = np.random.default_rng(draw_seed("spectrum", seed))
        self._sample = np.sort(generator.choice(n_rows, used, replace=False)) if self._wide else np.arange(0)
        self.bound = min(width, used)
        """The largest effective rank that could come out."""

    def add(self, places: slice, chunk: Tensor | SparseRows) -> None:
        """Take in the rows at `places`."""
        if not self._wide:
            codes = _matrix(chunk)
            product = codes.T @ codes
            self._gram += product.toarray() if isinstance(product, csr_array) else product
            return
        low, high = np.searchsorted(self._sample, [places.start, places.stop])
        if low < high:
            wanted = torch.from_numpy(self._sample[low:high] - places.start)
            if isinstance(chunk, SparseRows):
                wanted = wanted.to(chunk.values.device)
                chunk = SparseRows(chunk.values[wanted], chunk.indices[wanted], chunk.width)
            else:
                chunk = chunk[wanted.to(chunk.device)]
            self._parts.append(_matrix(chunk))

    def effective_rank(self) -> float:
        """exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007); NaN for zeros.

        Codes are not centred. A small sample of rows gives too low a rank, so compare arms at one number of rows.
        """
        gram = self._row_gram() if self._wide else self._gram
        eigenvalues = np.linalg.eigvalsh(gram)
        # what rounding leaves of a zero eigenvalue would count with its root
        floor = eigenvalues[-1] * len(gram) * np.finfo(np.float64).eps
        singular = np.sqrt(eigenvalues[eigenvalues > floor])
        if not len(singular):
            return float("nan")
        share = singular / singular.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def _row_gram(self) -> NDArray[np.float64]:
        if all(isinstance(part, np.ndarray) for part in self._parts):
            codes = np.concatenate(self._parts)
            return np.asarray(codes @ codes.T)
        sparse = vstack([csr_array(part) for part in self._parts], format="csr")
        return np.asarray((sparse @ sparse.T).toarray())


def scatter_ratio(codes: Codes, labels: ArrayLike, n_classes: int, rows: Ints | None = None) -> float:
    """Between-class over within-class scatter of codes, tr(S_b) / tr(S_w) (Fukunaga 1990, section 10.2).

    S_b = Σ_c n_c ‖μ_c − μ‖² and S_w = Σ_i ‖z_i − μ_{y_i}‖², both in float64 from one pass. `labels` [n] belong to
    `rows` (all where None). Labels drawn at random give (K − 1) / (n − K) on average. Infinite where classes are
    points, NaN where only one class has rows or all rows are equal. Raises MonoevalError where labels do not fit.
    """
    given = checked_labels(codes, labels, n_classes, rows)
    labels_n = torch.from_numpy(given).to(codes.device)
    sums = torch.zeros(n_classes, codes.width, dtype=torch.float64, device=codes.device)
    squares = torch.zeros((), dtype=torch.float64, device=codes.device)
    for places, chunk in chunks(codes, rows):
        if isinstance(chunk, SparseRows):
            entries = Entries.of(chunk)
            cells = labels_n[places][entries.rows] * codes.width + entries.latents
            sums.view(-1).index_add_(0, cells, entries.values)
            squares += entries.values.square().sum()
        else:
            codes_nm = chunk.double()
            sums.index_add_(0, labels_n[places], codes_nm)
            squares += codes_nm.square().sum()
    sizes = torch.bincount(labels_n, minlength=n_classes)
    seen = sizes > 0
    of_classes = float((sums[seen].square().sum(1) / sizes[seen]).sum())
    between = of_classes - float(sums.sum(0).square().sum()) / len(given)
    within = float(squares) - of_classes
    rounding = 1e-12 * float(squares)
    if int(seen.sum()) < 2 or between + within <= rounding:
        return float("nan")
    return max(0.0, between) / within if within > rounding else float("inf")


def margins(logits_nc: ArrayLike, labels_n: ArrayLike) -> NDArray[np.float64]:
    """The true class's logit minus the largest other one [n]: positive where the row is classified rightly."""
    logits, labels = np.array(logits_nc, dtype=np.float64), np.asarray(labels_n, dtype=np.int64)
    row = np.arange(len(logits))
    true = logits[row, labels]
    logits[row, labels] = -np.inf
    return np.asarray(true - logits.max(axis=1, initial=-np.inf))


def margin_quantiles(margins_n: NDArray[np.float64], shares: Sequence[float] = SHARES) -> NDArray[np.float64]:
    """The smallest margin that at least each share of rows does not exceed; NaN for no rows.

    They are margins of rows, never between two, since a class that cannot be predicted has an infinite margin.
    """
    if not len(margins_n):
        return np.full(len(shares), np.nan)
    return np.asarray(np.quantile(margins_n, shares, method="inverted_cdf"))


def _matrix(chunk: Tensor | SparseRows) -> NDArray[np.float64] | csr_array:
    if isinstance(chunk, Tensor):
        return np.asarray(chunk.double().cpu().numpy())
    n, k = chunk.values.shape
    values, indices = chunk.values.double().cpu().numpy(), chunk.indices.cpu().numpy()
    return csr_array((values.ravel(), indices.ravel(), np.arange(n + 1) * k), shape=(n, chunk.width))
