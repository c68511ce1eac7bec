"""Choose each probe's L2 by one rule for every arm, and fit many probes in few batched solves.

The path runs from the largest λ of the grid to the smallest, each solve starting from the one before. The score
is the log-loss on validation rows: those given, else each training row once, by the fold that left it out. The
choice is the λ of the smallest loss or, by the rule `one-se`, the largest λ within one standard error of it. That
error is of the *paired* difference over validation rows (or their groups): what makes a row hard for every λ
cancels, where five fold means would leave four degrees of freedom and a single held-out fifth none at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoeval.data.images import Ints
from monoeval.probes.batch import Batch, batches
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import minimise
from monoeval.probes.objective import Loss, Objective, Point
from monoeval.probes.problem import Choice, LinearProbes, Problem
from monoeval.probes.spec import Gradient
from monoeval.progress import bar

LOWEST, HIGHEST = 1e-9, 1e3
"""How far a grid is extended, a decade at a time, while the choice lies at its edge."""
PATH_TOLERANCE = 1e-4
"""Of the fits whose validation losses are compared, which end by their estimate too."""


def fit_selected(
    codes: TrainingCodes, problems: Sequence[Problem], n_classes: int, spec: Gradient, *, judged: bool = False
) -> LinearProbes:
    """Tune and fit one classifier a problem on shared codes [N, M].

    Problems with `validation_rows` are tuned on those and fitted on `rows` alone, so that k shots mean k; the
    others are tuned by `spec.folds` folds (a held-out fifth from 5,000 rows on) and fitted again on all their
    rows. A grid of one value is taken as it is, with a validation loss of NaN unless `judged`. The path ends
    early for a problem whose loss was worse than the best by more than a standard error at two values in a row.
    Validation rows of a class that the fold's training rows lack are left out, the same rows at every λ. Losses on
    validation rows are those that are minimised: log-loss for the logistic probe. `selection_labels` are what rows
    that a fold left out are judged by; folds, and what is fitted, stay those of `labels`.
    """
    weights = torch.empty(len(problems), n_classes, codes.width, device=codes.device)
    intercept = torch.empty(len(problems), n_classes, device=codes.device)
    choices: dict[int, Choice] = {}
    n_folds = spec.folds if judged or len(set(spec.l2)) > 1 else 0
    with bar("Fitting probes", len(problems), "probe") as advance:
        for batch in batches(codes, problems, n_classes, n_folds, spec.balanced):
            fitted = _Path(batch, n_classes, spec).fit(judged)
            members = torch.tensor(batch.members, device=codes.device)
            weights[members], intercept[members] = fitted.weights_pcm, fitted.intercept_pc
            choices.update(zip(batch.members, fitted.choices, strict=True))
            advance(len(batch.members))
    return LinearProbes(weights.div_(codes.scale), intercept, [choices[i] for i in range(len(problems))])


def within_one_error(difference_v: NDArray[np.float64], clusters_v: Ints | None) -> bool:
    """Whether the mean of paired differences is at most one standard error; with fewer than two rows, yes."""
    if len(difference_v) < 2:
        return True
    mean = difference_v.mean()
    rest = difference_v - mean
    if clusters_v is not None:
        rest = np.bincount(np.unique(clusters_v, return_inverse=True)[1], weights=rest)
    error = np.sqrt((rest**2).sum() * len(rest) / max(1, len(rest) - 1)) / len(difference_v)
    return bool(mean <= error)


@dataclass
class _Tuning:
    """One problem on the path: its validation losses [v] by λ."""

    rule: Literal["min", "one-se"]
    losses: dict[float, NDArray[np.float64]] = field(default_factory=dict)
    clusters: Ints | None = None  # [v] validation rows that are judged as one
    rises: int = 0

    @property
    def best(self) -> float:
        """The λ of the smallest mean loss, the larger one of equals."""
        return min(self.losses, key=lambda l2: (self.mean(l2), -l2))

    @property
    def chosen(self) -> float:
        """The best λ or, by `one-se`, the largest that is reached from it without leaving its standard error."""
        choice = self.best
        if self.rule == "min":
            return choice
        for l2 in sorted(x for x in self.losses if x > choice):
            if not self.near_best(l2):
                break
            choice = l2
        return choice

    def mean(self, l2: float) -> float:
        """Mean loss; NaN where no row could be scored."""
        return float(self.losses[l2].mean()) if len(self.losses[l2]) else float("nan")

    def near_best(self, l2: float) -> bool:
        """Whether `l2` loses at most one standard error of the paired difference more than the best."""
        return within_one_error(self.losses[l2] - self.losses[self.best], self.clusters)

    def add(self, l2: float, loss: NDArray[np.float64], clusters: Ints | None) -> None:
        """Record the losses at `l2`, and count how often in a row they were worse than the best so far."""
        self.losses[l2], self.clusters = loss, clusters
        self.rises = 0 if self.near_best(l2) else self.rises + 1


class _Path:
    """The λ path of one batch."""

    def __init__(self, batch: Batch, n_classes: int, spec: Gradient) -> None:
        self.batch, self.n_classes, self.loss = batch, n_classes, Loss.of(spec)
        self.grid = sorted({float(l2) for l2 in spec.l2}, reverse=True)
        self.tunings = [_Tuning(spec.rule) for _ in batch.members]
        # where each refit starts; what lies above the choice so far is dropped, as wide ones fill the memory
        self.found: list[dict[float, Tensor]] = [{} for _ in batch.members]
        # of all folds, at the λ before
        self.x: Tensor | None = None
        self.at: Point | None = None

    @torch.no_grad()
    def fit(self, judged: bool) -> LinearProbes:
        """The probes of the batch's members, in their order; `judged`: with validation losses in any case."""
        batch, tuned = self.batch, len(self.grid) > 1
        if tuned or judged:
            self._walk()
        chosen = [t.chosen if tuned else self.grid[0] for t in self.tunings]
        l2_gp = torch.tensor(chosen, dtype=torch.float64, device=batch.rows.device).view(batch.shape)
        objective = Objective(batch.rows, batch.labels, batch.weights, l2_gp, self.n_classes, self.loss, False)
        x = None
        if tuned:
            nearest = [
                have[min(have, key=lambda x: abs(np.log(x / l2)))]
                for have, l2 in zip(self.found, chosen, strict=True)
            ]
            x = objective.adopt(batch.by_group(torch.stack(nearest)))
        descent = minimise(objective, x)
        weights, intercept = batch.rows.leave(descent.x)
        intercept = intercept.masked_fill(~objective.present, -torch.inf)
        gaps, converged = descent.gap.flatten().tolist(), descent.converged.flatten().tolist()
        choices = [
            Choice(
                l2=chosen[i],
                validation_loss=tuning.mean(chosen[i]) if tuning.losses else float("nan"),
                at_edge=tuned and chosen[i] in (min(tuning.losses), max(tuning.losses)),
                converged=converged[i],
                measures={"gap": gaps[i]} if self.loss.convex else {},
                losses=tuning.losses.get(chosen[i]),
                clusters=tuning.clusters,
            )
            for i, tuning in enumerate(self.tunings)
        ]
        return LinearProbes(weights.flatten(0, 1), intercept.flatten(0, 1), choices)

    def _walk(self) -> None:
        """Down the grid, on while the best is the lowest, then up while the choice is the highest."""
        batch = self.batch
        ones = torch.ones(
            batch.shape[0], batch.shape[1] * batch.n_fits, dtype=torch.float64, device=batch.rows.device
        )
        objective = Objective(
            batch.rows, batch.fold_labels(), batch.fold_weights(), ones, self.n_classes, self.loss, True
        )
        for l2 in self.grid:
            self._step(objective, l2, [t.rises < 2 for t in self.tunings])
        if len(self.grid) == 1:
            return
        low, high = self.grid[-1], self.grid[0]
        while low > LOWEST * 1.001:
            below = float(f"{low / 10:.6g}")
            self._step(objective, below, [t.best == low for t in self.tunings])
            low = below
        self.x = self.at = None
        while high < HIGHEST / 1.001:
            above = float(f"{high * 10:.6g}")
            self._step(objective, above, [t.chosen == high for t in self.tunings])
            high = above

    def _step(self, objective: Objective, l2: float, live: list[bool]) -> None:
        """Fit all folds of the live problems at `l2` and score the rows that each left out."""
        if not any(live):
            return
        batch = self.batch
        # parts are groups, or the problems of a single group with all their folds
        along = 0 if batch.shape[0] > 1 else 1
        alive = torch.tensor(live).view(batch.shape).any(1 - along)
        index = alive.nonzero()[:, 0].to(batch.rows.device)
        folds = torch.arange(batch.n_fits, device=index.device)
        fits = index if along == 0 else (index[:, None] * batch.n_fits + folds).flatten()
        part = objective.at(torch.full_like(objective.l2, l2))
        if bool(alive.all()):
            descent = minimise(part.convex(), self.x, self.at, tolerance=PATH_TOLERANCE, rough=True)
            self.x, self.at = descent.x, descent.at
        else:
            part.take(along, fits)
            # only the way down has a λ before; up, few problems go on, each λ from the origin
            x = None if self.x is None else self.x.index_select(along, fits)
            at = None if self.at is None else self.at.take(along, fits)
            descent = minimise(part.convex(), x, at, tolerance=PATH_TOLERANCE, rough=True)
            if self.x is not None and self.at is not None:
                for mine, new in zip((self.x, *self.at.parts()), (descent.x, *descent.at.parts()), strict=True):
                    mine.index_copy_(along, fits, new)
        if not part.loss.convex:
            descent = minimise(part, descent.x, tolerance=PATH_TOLERANCE, rough=True)
        labels, fold = batch.judged_by.index_select(along, index), batch.fold.index_select(along, index)
        shape = (*labels.shape[:2], batch.n_fits)
        judge = fold.clamp(0, batch.n_fits - 1)[:, :, None]
        loss = descent.at.losses.view(*shape, -1).gather(2, judge)[:, :, 0]
        seen = part.present.view(*shape, -1).gather(3, labels[:, :, None].expand(-1, -1, batch.n_fits, -1))
        judged = (fold >= 0) & (fold < batch.n_fits) & seen.gather(2, judge)[:, :, 0]
        rows = loss.masked_fill(~judged, torch.nan).flatten(0, 1).double().cpu().numpy()
        mean_x = descent.x.view(*shape, *descent.x.shape[2:]).mean(2).flatten(0, 1)
        members = torch.arange(len(live)).view(batch.shape).index_select(along, index.cpu()).flatten().tolist()
        for k, i in enumerate(members):
            if live[i]:
                finite = np.isfinite(rows[k])
                clusters = batch.clusters[i]
                self.tunings[i].add(l2, rows[k][finite], None if clusters is None else clusters[finite])
                self.found[i][l2] = mean_x[k].clone()
                limit = self.tunings[i].chosen
                self.found[i] = {x: kept for x, kept in self.found[i].items() if x <= limit}
