"""Ridge regression on one-hot labels: one eigendecomposition for every L2 and every set of labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import SparseRows
from monoeval.data.images import Ints
from monoeval.errors import UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.held_out import (
    ClassSums,
    Judged,
    SharedRows,
    add_to_slots,
    calibrate,
    dense,
    read,
    shared_rows,
)
from monoeval.probes.problem import Choice, LinearProbes, Problem
from monoeval.probes.select import HIGHEST, LOWEST, _Tuning
from monoeval.probes.spec import Ridge
from monoeval.progress import bar

WIDEST = 8192
"""Rows or columns of the largest matrix that is decomposed: minutes on one core, in about 4 GB."""
SCATTERED = 2**22
"""Products of two codes of a row that are held at once where codes are sparse."""
COLUMNS = 4096
"""Columns that are turned to float64 at once where rows are fewer."""


def fit_ridge(codes: TrainingCodes, problems: Sequence[Problem], n_classes: int, spec: Ridge) -> LinearProbes:
    """Minimise mean ½‖onehot(y) − W x − b‖² + (L2/2)·‖W‖² for scaled codes x [N, M], the intercept free.

    With the covariance Σ = V·diag(e)·Vᵀ of the rows and their cross-covariance C with the labels,
    W = Cᵀ·V·diag(1/(e + L2))·Vᵀ for every L2. Covariance and class sums are taken in float64 in one pass over the
    rows, a fold's share apart, so that each fit is the whole less its fold. Where rows are fewer than columns,
    the same is done in the space of the rows, whose codes are then held. Decompositions are shared by all
    problems on the same rows: folds do not depend on labels.

    Scores of least squares are not log-probabilities: they are multiplied by one number a problem
    (`calibrate`, fitted to the held-out scores; its inverse is the measure `temperature`), and the L2 is the one
    whose log-loss is then best, by the rule and on the grid of the logistic probe. The number is folded into the
    classifier. A class without a row has weights 0 and intercept −inf.

    Raises UsageError where both rows and columns are more than `WIDEST`.
    """
    weights = torch.empty(len(problems), n_classes, codes.width, device=codes.device)
    intercept = torch.empty(len(problems), n_classes, device=codes.device)
    choices: dict[int, Choice] = {}
    with bar("Fitting probes", len(problems), "probe") as advance:
        for shared in shared_rows(problems, codes.device):
            for members, turn in _fit_shared(codes, shared, n_classes, spec):
                index = torch.tensor(members, device=codes.device)
                weights[index], intercept[index] = turn.weights_pcm, turn.intercept_pc
                choices.update(zip(members, turn.choices, strict=True))
                advance(len(members))
    return LinearProbes(weights, intercept, [choices[i] for i in range(len(problems))])


@dataclass(frozen=True)
class _Loads:
    """Least squares for every L2: scores are coordinates · loads / (variances + L2) + class shares."""

    variances_k: Tensor  # float64
    loads_pck: Tensor  # float64
    counts_pc: Tensor  # float64: rows of each class

    def at(self, l2_p: Tensor, problems: list[int]) -> Tensor:
        """Coefficients float64 [p, C, k] of the coordinates."""
        return self.loads_pck[problems] / (self.variances_k.clamp(min=0) + l2_p[:, None])[:, None]

    def shares(self, problems: list[int]) -> Tensor:
        """Means float64 [p, C] of the one-hot labels."""
        counts_pc = self.counts_pc[problems]
        return counts_pc / counts_pc.sum(1, keepdim=True)


@dataclass(frozen=True)
class _Fit:
    """A fit on some rows, with the axes that it is expressed in."""

    loads: _Loads
    coordinates: Callable[[Ints], Tensor]  # float32 [v, k] of rows at positions in the pool
    expand: Callable[[Tensor], tuple[Tensor, Tensor]]  # to weights [p, C, M], and their value at the mean


@dataclass(frozen=True)
class _LeftOut:
    """What a fit needs to score the rows that it left out; its axes, which are large, are dropped."""

    loads: _Loads
    coordinates_vk: Tensor
    positions: Ints

    def judged(self, shared: SharedRows, l2: float, problems: list[int]) -> Judged:
        l2_p = self.coordinates_vk.new_full((len(problems),), l2, dtype=torch.float64)
        flat = self.loads.at(l2_p, problems).flatten(0, 1).float()
        scores = torch.addmm(self.loads.shares(problems).flatten().float(), self.coordinates_vk, flat.T)
        labels = shared.labels_of(self.positions, problems)
        return Judged(scores.view(*labels.shape, -1), labels, self.loads.counts_pc[problems] > 0)


def _fit_shared(
    codes: TrainingCodes, shared: SharedRows, n_classes: int, spec: Ridge
) -> Iterator[tuple[list[int], LinearProbes]]:
    """The probes of some of the problems at a time, with their places in the call."""
    if min(shared.n, codes.width) > WIDEST:
        raise UsageError(
            f"Ridge cannot be solved in closed form for {shared.n} rows of {codes.width} codes, as both are more "
            f"than {WIDEST}: choose --probe logistic, or fewer codes."
        )
    fold, scored = shared.folds(spec.folds)
    kind = _Gram if shared.n < codes.width else _Covariance
    moments = kind(codes, shared, fold, n_classes)
    left_out = []
    final = None
    for f, positions in enumerate(scored):
        fit = moments.fit(without=f)
        left_out.append(_LeftOut(fit.loads, fit.coordinates(positions), positions))
        final = fit if shared.validated else None
        del fit
    final = final or moments.fit(without=None)
    del moments
    judged = np.concatenate(scored)
    clusters = None if shared.validated or shared.groups is None else shared.groups[judged]
    for problems in shared.turns(len(judged), n_classes):
        path = _Path(left_out, shared, problems, clusters, spec)
        path.walk()
        l2_p = torch.tensor([t.chosen for t in path.tunings], dtype=torch.float64, device=codes.device)
        scale_pc = torch.stack([s[t.chosen] for s, t in zip(path.scales, path.tunings, strict=True)])[:, None]
        weights_pcm, at_mean_pc = final.expand(final.loads.at(l2_p, problems))
        unseen_pc = final.loads.counts_pc[problems] == 0
        intercept_pc = (final.loads.shares(problems) - at_mean_pc) * scale_pc
        yield (
            [shared.members[p] for p in problems],
            LinearProbes(
                weights_pcm.mul_(scale_pc[..., None] / codes.scale).float(),
                intercept_pc.masked_fill_(unseen_pc, -torch.inf).float(),
                path.choices(),
            ),
        )


class _Path:
    """The search for the L2 of some problems, by the rule of the logistic probe."""

    def __init__(
        self,
        left_out: Sequence[_LeftOut],
        shared: SharedRows,
        problems: list[int],
        clusters: Ints | None,
        spec: Ridge,
    ) -> None:
        self.left_out, self.shared, self.problems, self.clusters = left_out, shared, problems, clusters
        self.grid = sorted({float(l2) for l2 in spec.l2}, reverse=True)
        self.tunings = [_Tuning(spec.rule) for _ in problems]
        self.scales: list[dict[float, Tensor]] = [{} for _ in problems]

    def walk(self) -> None:
        """Down the grid, on while the best is the lowest, then up while the choice is the highest."""
        everyone = [True] * len(self.problems)
        for l2 in self.grid:
            self._step(l2, everyone)
        if len(self.grid) == 1:
            return
        low, high = self.grid[-1], self.grid[0]
        while low > LOWEST * 1.001:
            below = float(f"{low / 10:.6g}")
            self._step(below, [t.best == low for t in self.tunings])
            low = below
        while high < HIGHEST / 1.001:
            above = float(f"{high * 10:.6g}")
            self._step(above, [t.chosen == high for t in self.tunings])
            high = above

    def _step(self, l2: float, live: Sequence[bool]) -> None:
        places = [k for k, is_live in enumerate(live) if is_live]
        if not places:
            return
        problems = [self.problems[k] for k in places]
        before = [min(self.scales[k], key=lambda x: abs(np.log(x / l2)), default=None) for k in places]
        start = [self.scales[k][x] for k, x in zip(places, before, strict=True) if x is not None]
        calibration = calibrate(
            [x.judged(self.shared, l2, problems) for x in self.left_out], torch.stack(start) if start else None
        )
        losses_pv = calibration.losses_vp.T.cpu().numpy()
        for k, loss, scale in zip(places, losses_pv, calibration.scale_p, strict=True):
            known = ~np.isnan(loss)
            self.tunings[k].add(l2, loss[known], None if self.clusters is None else self.clusters[known])
            self.scales[k][l2] = scale

    def choices(self) -> list[Choice]:
        return [
            Choice(
                l2=tuning.chosen,
                validation_loss=tuning.mean(tuning.chosen),
                at_edge=len(self.grid) > 1 and tuning.chosen in (min(tuning.losses), max(tuning.losses)),
                measures={"temperature": 1 / float(scales[tuning.chosen])},
                losses=tuning.losses[tuning.chosen],
                clusters=tuning.clusters,
            )
            for tuning, scales in zip(self.tunings, self.scales, strict=True)
        ]


class _Covariance:
    """Sums of outer products [M, M] of each fold's rows, in float64."""

    def __init__(self, codes: TrainingCodes, shared: SharedRows, fold: Ints, n_classes: int) -> None:
        self.codes, self.pool = codes, shared.pool
        self.classes = ClassSums.empty(shared, fold, n_classes, codes)
        n_folds, width = len(self.classes.counts_fpc), codes.width
        self.products_fmm = self.classes.sums_fpcm.new_zeros(n_folds, width, width)
        fold_n = torch.from_numpy(fold).to(codes.device)
        for part, chunk in read(codes, shared.pool):
            self.classes.add(chunk, fold_n[part], [y[part] for y in shared.labels])
            self._add_products(chunk, fold_n[part])

    def _add_products(self, chunk: Tensor | SparseRows, fold_n: Tensor) -> None:
        n_folds, width, _ = self.products_fmm.shape
        if isinstance(chunk, SparseRows) and 20 * chunk.values.shape[1] < width:
            # k² additions at random places a row cost less than a dense product while k is that small
            size = max(1, SCATTERED // chunk.values.shape[1] ** 2)
            for start in range(0, len(fold_n), size):
                part = slice(start, start + size)
                values, indices = chunk.values[part].double(), chunk.indices[part]
                pairs = (fold_n[part, None, None] * width + indices[:, :, None]) * width + indices[:, None, :]
                products = values[:, :, None] * values[:, None, :]
                self.products_fmm.view(-1).index_add_(0, pairs.flatten(), products.flatten())
            return
        codes_nm = dense(chunk).double()
        for f in range(n_folds):
            here = codes_nm[fold_n == f]
            self.products_fmm[f].addmm_(here.T, here)

    def fit(self, without: int | None) -> _Fit:
        """Least squares on all rows but one fold's."""
        sums_pcm, counts_pc = self.classes.over(slice(None), without)
        n = counts_pc[0].sum()
        mean = sums_pcm[0].sum(0) / n
        covariance = self.products_fmm[[f for f in range(len(self.products_fmm)) if f != without]].sum(0).div_(n)
        variances, axes_mk = torch.linalg.eigh(covariance.addr_(mean, mean, alpha=-1))
        loads_pck = (sums_pcm.div_(n) - (counts_pc / n)[..., None] * mean) @ axes_mk

        codes, pool = self.codes, self.pool  # not self, whose products are no longer needed

        def coordinates(positions: Ints) -> Tensor:
            axes = axes_mk.float()
            return torch.cat(
                [(dense(chunk).double() - mean).float() @ axes for _, chunk in read(codes, pool[positions])]
            )

        def expand(coefficients_pck: Tensor) -> tuple[Tensor, Tensor]:
            weights_pcm: Tensor = coefficients_pck @ axes_mk.T
            return weights_pcm, weights_pcm @ mean

        return _Fit(_Loads(variances, loads_pck, counts_pc), coordinates, expand)


class _Gram:
    """Inner products [n, n] of centred rows, in float64; codes of the rows are held."""

    def __init__(self, codes: TrainingCodes, shared: SharedRows, fold: Ints, n_classes: int) -> None:
        self.fold, self.n_classes, self.shared = torch.from_numpy(fold).to(codes.device), n_classes, shared
        self.codes_nm = codes.dense(shared.pool)
        self.gram_nn = torch.zeros(len(fold), len(fold), dtype=torch.float64, device=codes.device)
        for columns in torch.split(self.codes_nm, COLUMNS, 1):
            centred = columns.double()
            centred -= centred.mean(0)
            self.gram_nn.addmm_(centred, centred.T)

    def fit(self, without: int | None) -> _Fit:
        """Least squares on all rows but one fold's."""
        used = (self.fold != (-1 if without is None else without)).nonzero()[:, 0]
        n = len(used)
        gram = self.gram_nn[used][:, used]
        to_mean_n, among = gram.mean(0), gram.mean()
        variances, axes_nk = torch.linalg.eigh((gram - to_mean_n - to_mean_n[:, None] + among).div_(n))
        axes_nk -= axes_nk.mean(0)  # rows enter as differences from their mean
        sums_pck = axes_nk.new_zeros(len(self.shared.labels), self.n_classes, n)
        for sums_ck, y in zip(sums_pck, self.shared.labels, strict=True):
            add_to_slots(sums_ck, axes_nk, y[used])
        counts = [torch.bincount(y[used], minlength=self.n_classes) for y in self.shared.labels]

        def coordinates(positions: Ints) -> Tensor:
            between_vn = self.gram_nn[torch.from_numpy(positions).to(used.device)][:, used]
            turned_vk: Tensor = (between_vn - to_mean_n) @ axes_nk
            return turned_vk.float()

        def expand(coefficients_pck: Tensor) -> tuple[Tensor, Tensor]:
            of_rows_pcn = coefficients_pck @ axes_nk.T
            parts = []
            at_mean_pc = torch.zeros_like(coefficients_pck[..., 0])
            for columns in torch.split(self.codes_nm, COLUMNS, 1):
                rows = columns[used].double()
                mean = rows.mean(0)
                parts.append(of_rows_pcn @ rows.sub_(mean))
                at_mean_pc += parts[-1] @ mean
            return torch.cat(parts, 2), at_mean_pc

        loads = _Loads(variances, sums_pck.div_(n), torch.stack(counts).double())
        return _Fit(loads, coordinates, expand)
