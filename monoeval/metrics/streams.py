"""How measures read codes: chunks of bounded size, non-zero entries of sparse rows, and what counts as active."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError

ACTIVE = 1e-5
"""A latent is active in a row where |z| is more than this share of the row's Euclidean length."""
CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Entries:
    """The non-zero entries of sparse rows. A latent appears once a row at most."""

    rows: Tensor  # [e] int64
    latents: Tensor  # [e] int64
    values: Tensor  # [e] float64
    active: Tensor  # [e] bool

    @classmethod
    def of(cls, codes: SparseRows) -> "Entries":
        rows, places = codes.values.nonzero(as_tuple=True)
        values = codes.values[rows, places].double()
        lengths = torch.linalg.vector_norm(codes.values.double(), dim=1)
        return cls(rows, codes.indices[rows, places], values, values.abs() > ACTIVE * lengths[rows])


def active(codes_nm: Tensor) -> Tensor:
    """Which entries of dense codes [n, M] (float64) are active, as bool [n, M]."""
    return codes_nm.abs().gt(ACTIVE * torch.linalg.vector_norm(codes_nm, dim=1, keepdim=True))


def chunk_rows(width: int) -> int:
    """Rows of a chunk that keep it small also where codes are dense."""
    return max(1, min(4096, CHUNK_ENTRIES // width))


def chunks(codes: Codes, rows: Ints | None) -> Iterator[tuple[slice, Tensor | SparseRows]]:
    """Codes of `rows` in order, with their places among `rows`."""
    at = 0
    for chunk in codes.chunks(rows, chunk_rows(codes.width)):
        n = len(chunk.values) if isinstance(chunk, SparseRows) else len(chunk)
        yield slice(at, at + n), chunk
        at += n


def checked_labels(codes: Codes, labels: ArrayLike, n_classes: int, rows: Ints | None) -> Ints:
    """`labels` as int64 [n], one for each of `rows`; raises MonoevalError where they do not fit, or are none."""
    given = np.asarray(labels, dtype=np.int64)
    n = len(codes) if rows is None else len(rows)
    if given.shape != (n,):
        raise MonoevalError(f"{n:,} rows of codes have {given.size:,} labels: give one label for each row.")
    if n == 0:
        raise MonoevalError("Codes are measured on at least one row, and there is none: give more rows.")
    if given.min() < 0 or given.max() >= n_classes:
        raise MonoevalError(
            f"Labels run from {given.min()} to {given.max()} and there are {n_classes} classes: "
            f"number them from 0 to {n_classes - 1}."
        )
    return given
