"""How codes enter a solve: rows that are multiplied by weights chunk by chunk, in coordinates where it goes fast.

The solver's parameters [G, P, C, D + 1] are weights on D coordinates and an intercept. `Shared` is one group
whose rows stay where they are (dense, sparse, or streamed from disk): its centring and rotation are applied to
the weights, once a pass, never to the rows. `RowSpace` is many groups of few rows: with fewer rows than columns
the optimum lies in the rows' span, so their Gram matrix is all that is needed.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from monoeval.adapters.base import SparseRows
from monoeval.hardware import one_thread
from monoeval.probes.codes import TrainingCodes

WIDEST_ROTATION = 4096
"""Above this width an eigendecomposition costs more than it saves; columns then keep their own variances."""
KEPT = 2**30
"""Bytes of centred or transposed chunks that are kept from pass to pass; larger ones are made again."""
SPARSE_ROWS = 4096
ALONE = 512
"""Rows up to which one thread decomposes: LAPACK's wait for each other at every step, and beside other processes
42 ms a problem were seen instead of 2."""
LEADING, SUBSPACE_STEPS = 512, 2
"""Axes of wider codes that a descent is started with, and the steps that find them."""
SPANNED = 2**21
"""Numbers of codes whose spans are found together: 50 MB with what is made of them."""
CHUNK, FEWEST_ROWS = 2**20, 1024
"""Logits (4 MB) that stay in the cache between the two products of a pass, and the fewest rows of one product."""


class Chunk(ABC):
    """Some rows of every group, ready for the two products of a pass."""

    rows: slice

    @abstractmethod
    def logits(self, weights: Tensor, offset_gk: Tensor, out: Tensor) -> Tensor:
        """K logits of each row, [G, K, n], in the memory of the flat tensor `out`."""

    @abstractmethod
    def add(self, gradient: Tensor, residual_gkn: Tensor) -> None:
        """Add residual · rows to `gradient`, which is laid out as the weights are."""


@dataclass(frozen=True)
class DenseChunk(Chunk):
    """Rows [G, n, M]; weights are [G, K, M]."""

    rows: slice
    codes_gnm: Tensor

    def logits(self, weights: Tensor, offset_gk: Tensor, out: Tensor) -> Tensor:
        logits = shaped(out, (*weights.shape[:2], self.codes_gnm.shape[1]))
        return torch.bmm(weights, self.codes_gnm.mT, out=logits).add_(offset_gk[..., None])

    def add(self, gradient: Tensor, residual_gkn: Tensor) -> None:
        gradient.baddbmm_(residual_gkn, self.codes_gnm)


def shaped(flat: Tensor, shape: Sequence[int]) -> Tensor:
    """The beginning of a flat tensor's memory, in a shape."""
    return flat[: math.prod(shape)].view(*shape)


@dataclass(frozen=True)
class SparseChunk(Chunk):
    """Rows of one group as a CSR matrix [n, M] and its transpose; weights are [M, K]."""

    rows: slice
    codes_nm: Tensor
    codes_mn: Tensor

    @classmethod
    def of(cls, rows: slice, codes: SparseRows) -> "SparseChunk":
        n, k = codes.values.shape
        starts = torch.arange(0, n * k + 1, k, device=codes.values.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            matrix = torch.sparse_csr_tensor(
                starts, codes.indices.flatten(), codes.values.flatten(), (n, codes.width), check_invariants=False
            )
            return cls(rows, matrix, matrix.t().to_sparse_csr())

    def logits(self, weights: Tensor, offset_gk: Tensor, out: Tensor) -> Tensor:
        logits = shaped(out, (len(self.codes_nm), weights.shape[1]))
        return torch.addmm(logits, self.codes_nm, weights, beta=0, out=logits).add_(offset_gk[0]).T[None]

    def add(self, gradient: Tensor, residual_gkn: Tensor) -> None:
        torch.addmm(gradient, self.codes_mn, residual_gkn[0].T, out=gradient)


class Rows(ABC):
    """G groups of n rows in D coordinates whose weighted covariance is nearly diagonal."""

    n_groups: int
    n: int
    variances_gd: Tensor
    device: torch.device
    sparse = False

    @abstractmethod
    def leave(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [G, P, C, M] and intercepts [G, P, C] on the codes, from the solver's parameters."""

    @abstractmethod
    def begin(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        """Weights as the chunks multiply by them, and offsets [G, P·C]."""

    def chunk_rows(self, n_logits: int) -> int:
        """Rows of the largest chunk, for `n_logits` numbers a row."""
        return min(self.n, max(FEWEST_ROWS, CHUNK // n_logits))

    @abstractmethod
    def chunks(self, n_logits: int) -> Iterator[Chunk]:
        """All rows in order, in chunks that suit `n_logits` numbers a row."""

    @abstractmethod
    def end(self, gradient: Tensor, total_gpc: Tensor) -> Tensor:
        """Gradient [G, P, C, D + 1] by the parameters, from that by the chunks' weights and sums of residuals."""

    @abstractmethod
    def take(self, groups: Tensor) -> "Rows":
        """Some groups only."""

    def whiten(self, direction_gpcd: Tensor, spread_gpc: Tensor, l2_gp: Tensor) -> None:
        """Divide by spread · covariance + λ, in place."""
        variances = self.variances_gd[:, None, None]
        direction_gpcd /= spread_gpc[..., None] * variances + l2_gp[..., None, None]


class Shared(Rows):
    """One group of all rows: rotated into the eigenbasis of its covariance where it is narrow enough."""

    n_groups = 1

    def __init__(self, codes: TrainingCodes) -> None:
        self.codes, self.n, self.device = codes, len(codes), codes.device
        self.sparse = codes.sparse
        self.mean_m = self._mean()
        self._centred: Tensor | None = None
        self._transposed: list[SparseChunk] | None = None
        if self.sparse and self.n * _sparse_bytes(codes) <= KEPT:
            self._transposed = [SparseChunk.of(rows, chunk) for rows, chunk in self._sparse_chunks()]
        elif not self.sparse and 4 * self.n * codes.width <= KEPT:
            self._centred = codes.whole().sub_(self.mean_m)
        # of sparse codes some axes serve as well as all: as many passes, and none of width² numbers
        rotated = codes.width <= (LEADING if self.sparse else WIDEST_ROTATION)
        self.axes_md, variances_d = self._principal_axes() if rotated else (None, self._variances())
        self.variances_gd = variances_d[None]
        self._leading: tuple[Tensor, Tensor] | None = None
        if not rotated:
            self._leading = self._leading_axes(min(LEADING, self.n // 2))

    def leave(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        turned, moved = parameters_gpck[..., :-1], parameters_gpck[..., -1]
        weights = turned.contiguous() if self.axes_md is None else turned @ self.axes_md.T
        return weights, moved - weights @ self.mean_m

    def begin(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        turned, offset_gk = parameters_gpck[..., :-1].flatten(1, 2), parameters_gpck[..., -1].flatten(1)
        weights = turned if self.axes_md is None else turned @ self.axes_md.T
        if not self.sparse:
            return weights.contiguous(), offset_gk
        return weights[0].T.contiguous(), offset_gk - weights @ self.mean_m

    def chunks(self, n_logits: int) -> Iterator[Chunk]:
        if self._transposed is not None:
            yield from self._transposed
        elif self.sparse:
            for rows, chunk in self._sparse_chunks():
                yield SparseChunk.of(rows, chunk)
        elif self._centred is not None:
            size = self.chunk_rows(n_logits)
            for start in range(0, self.n, size):
                rows = slice(start, min(start + size, self.n))
                yield DenseChunk(rows, self._centred[None, rows])
        else:
            for rows, part in self.codes.chunks(self.chunk_rows(n_logits)):
                assert isinstance(part, Tensor)
                yield DenseChunk(rows, part.sub_(self.mean_m)[None])

    def end(self, gradient: Tensor, total_gpc: Tensor) -> Tensor:
        if self.sparse:
            gradient = gradient.T[None] - total_gpc.flatten(1)[..., None] * self.mean_m
        turned = gradient if self.axes_md is None else gradient @ self.axes_md
        return torch.cat([turned.view(*total_gpc.shape, -1), total_gpc[..., None]], 3)

    def chunk_rows(self, n_logits: int) -> int:
        return min(self.n, SPARSE_ROWS) if self.sparse else super().chunk_rows(n_logits)

    def take(self, groups: Tensor) -> "Shared":
        assert len(groups) == 1
        return self

    def whiten(self, direction_gpcd: Tensor, spread_gpc: Tensor, l2_gp: Tensor) -> None:
        if self._leading is None:
            super().whiten(direction_gpcd, spread_gpc, l2_gp)
            return
        axes_mr, variances_r = self._leading
        spread, l2 = spread_gpc[..., None], l2_gp[..., None, None]
        rest = spread * self._rest + l2
        inside = direction_gpcd @ axes_mr
        inside *= 1 / (spread * variances_r + l2) - 1 / rest
        direction_gpcd /= rest
        direction_gpcd += inside @ axes_mr.T

    def _leading_axes(self, rank: int) -> tuple[Tensor, Tensor]:
        """The leading axes [M, r] of the covariance and the variances along them, by subspace iteration.

        Halko, Martinsson and Tropp (2011), algorithm 4.4. They serve to start a descent, so that few digits do.
        """
        generator = torch.Generator().manual_seed(0)
        axes = torch.randn(self.codes.width, rank, generator=generator).to(self.device)
        for _ in range(SUBSPACE_STEPS):
            axes = torch.linalg.qr(self._covariance_times(axes))[0]
        small = axes.T @ self._covariance_times(axes)
        variances, turn = torch.linalg.eigh((small + small.T).double() / 2)
        left = (self.variances_gd.double().sum() - variances.sum()).clamp(min=0)
        self._rest = float(left / max(1, int((self.variances_gd > 0).sum()) - rank))
        return axes @ turn.float(), variances.clamp(min=0).float()

    def _covariance_times(self, axes_mr: Tensor) -> Tensor:
        x = torch.cat([axes_mr.T, axes_mr.new_zeros(axes_mr.shape[1], 1)], 1)[None, None]
        weights, offset = self.begin(x)
        out, total = torch.zeros_like(weights), x.new_zeros(x.shape[:3])
        room = x.new_empty(self.chunk_rows(x.shape[2]) * x.shape[2])
        for chunk in self.chunks(x.shape[2]):
            products = chunk.logits(weights, offset, room)
            chunk.add(out, products)
            total += products.sum(2)
        return self.end(out, total)[0, 0, :, :-1].T / self.n

    def _sparse_chunks(self) -> Iterator[tuple[slice, SparseRows]]:
        for rows, chunk in self.codes.chunks(SPARSE_ROWS):
            assert isinstance(chunk, SparseRows)
            yield rows, chunk

    def _mean(self) -> Tensor:
        total = torch.zeros(self.codes.width, dtype=torch.float64, device=self.device)
        for _, chunk in self.codes.chunks():
            if isinstance(chunk, SparseRows):
                total.scatter_add_(0, chunk.indices.flatten(), chunk.values.flatten().double())
            else:
                total += chunk.sum(0, dtype=torch.float64)
        return (total / self.n).float()

    def _variances(self) -> Tensor:
        """Of the columns [M]."""
        squares = torch.zeros(self.codes.width, dtype=torch.float64, device=self.device)
        for _, part in self._parts():
            if isinstance(part, SparseRows):
                squares.scatter_add_(0, part.indices.flatten(), part.values.flatten().double().square())
            else:
                squares += part.square().sum(0, dtype=torch.float64)
        variances = squares / self.n - (self.mean_m.double().square() if self.sparse else 0.0)
        return variances.clamp(min=0).float()

    def _principal_axes(self) -> tuple[Tensor | None, Tensor]:
        """Axes [M, D] (None: the columns) and the variances [D] along them."""
        width = self.codes.width
        # in float64: LAPACK's threaded float32 routine gave NaN where many columns are zero (dead latents)
        covariance = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        for _, part in self._parts():
            dense = part.dense().sub_(self.mean_m) if isinstance(part, SparseRows) else part
            covariance += dense.T @ dense
        variances, axes = torch.linalg.eigh(covariance / self.n)
        if not bool(torch.isfinite(axes).all()):
            return None, (covariance.diagonal() / self.n).float()
        return axes.float(), variances.clamp(min=0).float()

    def _parts(self) -> Iterator[tuple[slice, Tensor | SparseRows]]:
        """Chunks of rows: dense ones centred, sparse ones as they are."""
        for chunk in self.codes.chunks():
            rows, part = chunk
            yield (rows, part) if isinstance(part, SparseRows) else (rows, part - self.mean_m)


def all_rows(codes: TrainingCodes) -> Rows:
    """One group of all rows, in the space where a solve is cheaper."""
    n = len(codes)
    if n < min(codes.width, WIDEST_ROTATION):
        return RowSpace.of(codes, [torch.arange(n, device=codes.device)], [n])
    return Shared(codes)


def _sparse_bytes(codes: TrainingCodes) -> int:
    """Bytes of one row as a CSR matrix and its transpose."""
    _, chunk = next(codes.chunks(1))
    assert isinstance(chunk, SparseRows)
    return 24 * chunk.values.shape[1]


@dataclass(frozen=True)
class Span:
    """The span of one group's fitted rows: centred codes = coordinates · axesᵀ, on the columns that are used."""

    columns: Tensor | slice
    width: int
    mean_m: Tensor
    axes_md: Tensor

    @classmethod
    def of(cls, codes: TrainingCodes, rows_gn: Tensor, n_fitted: int) -> Iterator[tuple["Span", Tensor]]:
        """The span of the first `n_fitted` rows of each group, and coordinates [n, D] of all of them."""
        size = 1 if codes.sparse else max(1, SPANNED // (rows_gn.shape[1] * codes.width))
        for start in range(0, len(rows_gn), size):
            some_gn = rows_gn[start : start + size]
            columns, codes_nm = codes.compact(some_gn.flatten())
            yield from cls._of(columns, codes.width, codes_nm.view(*some_gn.shape, -1), n_fitted)

    @classmethod
    def _of(
        cls, columns: Tensor | slice, width: int, codes_gnm: Tensor, n_fitted: int
    ) -> Iterator[tuple["Span", Tensor]]:
        mean_gm = codes_gnm[:, :n_fitted].mean(1)
        centred = codes_gnm - mean_gm[:, None]
        fitted = centred[:, :n_fitted].double()
        if n_fitted < fitted.shape[2]:
            squares, turn = torch.linalg.eigh(fitted @ fitted.mT)
            kept = squares > squares[:, -1:].clamp(min=1e-300) * n_fitted * 1e-14
            unused = n_fitted - int(kept.sum(1).max())
            squares, turn = squares[:, unused:], turn[..., unused:]
            # what a group spans less than its neighbours has coordinates of zero
            turn *= torch.where(kept[:, unused:], squares.clamp(min=1e-300).rsqrt(), 0.0)[:, None]
            axes = fitted.mT @ turn
        else:
            axes = torch.linalg.eigh(fitted.mT @ fitted)[1]
        axes_gmd = axes.float()
        for mean_m, axes_md, coordinates_nd in zip(mean_gm, axes_gmd, centred @ axes_gmd, strict=True):
            yield cls(columns, width, mean_m, axes_md), coordinates_nd


def _threads_for(n: int) -> AbstractContextManager[None]:
    """One thread where matrices have at most `ALONE` rows."""
    return one_thread() if n <= ALONE else nullcontext()


class RowSpace(Rows):
    """Groups of few rows, as coordinates [G, n, D] along the principal axes of their span."""

    def __init__(self, coordinates_gnd: Tensor, variances_gd: Tensor, spans: Sequence[Span]) -> None:
        self.coordinates_gnd, self.variances_gd, self.spans = coordinates_gnd, variances_gd, spans
        self.n_groups, self.n = coordinates_gnd.shape[:2]
        self.device = coordinates_gnd.device

    @classmethod
    def of(cls, codes: TrainingCodes, groups: Sequence[Tensor], fitted: Sequence[int]) -> "RowSpace":
        """Rows [n] of each group, of which the first `fitted` are fitted and span the space; padded with zeros."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for g, rows in enumerate(groups):
            alike[len(rows), fitted[g]].append(g)
        found: dict[int, tuple[Span, Tensor]] = {}
        for (_, n_fitted), members in alike.items():
            rows_gn = torch.stack([groups[g] for g in members])
            with _threads_for(n_fitted):
                found.update(zip(members, Span.of(codes, rows_gn, n_fitted), strict=True))
        made = [found[g] for g in range(len(groups))]
        n, d = max(len(c) for _, c in made), max(c.shape[1] for _, c in made)
        out = made[0][1].new_zeros(len(made), n, d)
        variances = out.new_zeros(len(made), d)
        for place, variance, (_, coordinates_nd), n_fitted in zip(out, variances, made, fitted, strict=True):
            place[: len(coordinates_nd), : coordinates_nd.shape[1]] = coordinates_nd
            variance[: coordinates_nd.shape[1]] = coordinates_nd[:n_fitted].square().mean(0)
        return cls(out, variances, [span for span, _ in made])

    def leave(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        width = self.spans[0].width
        weights = parameters_gpck.new_zeros(*parameters_gpck.shape[:3], width)
        intercept = parameters_gpck[..., -1].clone()
        with _threads_for(self.n):
            for place, moved, span, x in zip(weights, intercept, self.spans, parameters_gpck, strict=True):
                inside = x[..., : span.axes_md.shape[1]] @ span.axes_md.T
                place[..., span.columns] = inside
                moved -= inside @ span.mean_m
        return weights, intercept

    def begin(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        return parameters_gpck[..., :-1].flatten(1, 2).contiguous(), parameters_gpck[..., -1].flatten(1)

    def chunks(self, n_logits: int) -> Iterator[Chunk]:
        size = self.chunk_rows(n_logits)
        for start in range(0, self.n, size):
            rows = slice(start, min(start + size, self.n))
            yield DenseChunk(rows, self.coordinates_gnd[:, rows])

    def end(self, gradient: Tensor, total_gpc: Tensor) -> Tensor:
        return torch.cat([gradient.view(*total_gpc.shape, -1), total_gpc[..., None]], 3)

    def take(self, groups: Tensor) -> "RowSpace":
        return RowSpace(
            self.coordinates_gnd[groups], self.variances_gd[groups], [self.spans[g] for g in groups.tolist()]
        )
