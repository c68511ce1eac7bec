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
from monoeval.probes.logistic import solve
from monoeval.probes.problem import Choice, Problem
from monoeval.probes.spec import Gradient
from monoeval.progress import bar

LOWEST, HIGHEST = 1e-9, 1e3
"""How far a grid is extended, a decade at a time, while the choice lies at its edge."""
PATH_TOLERANCE = 2e-6
"""Validation losses need fewer digits than the probe that is kept."""


@dataclass(frozen=True)
class Selected:
    """One tuned and fitted classifier on the codes as they were given."""

    weights_cm: Tensor  # [C, M] float32
    intercept_c: Tensor  # [C] float32; -inf for classes without a training row
    choice: Choice


def fit_selected(codes_nm: Tensor, problems: Sequence[Problem], n_classes: int, spec: Gradient) -> list[Selected]:
    """Tune and fit one classifier a problem on shared float32 codes [N, M].

    Problems with `validation_rows` are tuned on those and fitted on `rows` alone, so that k shots mean k; the
    others are tuned by `spec.folds` folds (a held-out fifth from 5,000 rows on) and fitted again on all their
    rows. A grid of one value is taken as it is, with a validation loss of NaN. The path ends early for a
    problem whose loss was worse than the best by more than a standard error at two values in a row. Validation
    rows of a class that the fold's training rows lack are left out, the same rows at every λ.
    """
    fitted: dict[int, Selected] = {}
    with bar("Fitting probes", len(problems), "probe") as advance:
        for batch in batches(codes_nm, problems, spec.folds):
            fitted.update(_Path(batch, n_classes, spec).fit())
            advance(len(batch.members))
    return [fitted[i] for i in range(len(problems))]


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
        difference = self.losses[l2] - self.losses[self.best]
        if len(difference) < 2:
            return True
        mean = difference.mean()
        rest = difference - mean
        if self.clusters is not None:
            rest = np.bincount(np.unique(self.clusters, return_inverse=True)[1], weights=rest)
        error = np.sqrt((rest**2).sum() * len(rest) / max(1, len(rest) - 1)) / len(difference)
        return bool(mean <= error)

    def add(self, l2: float, loss: NDArray[np.float64], clusters: Ints | None) -> None:
        """Record the losses at `l2`, and count how often in a row they were worse than the best so far."""
        self.losses[l2], self.clusters = loss, clusters
        self.rises = 0 if self.near_best(l2) else self.rises + 1


class _Path:
    """The λ path of one batch."""

    def __init__(self, batch: Batch, n_classes: int, spec: Gradient) -> None:
        self.batch, self.n_classes = batch, n_classes
        self.grid = sorted({float(l2) for l2 in spec.l2}, reverse=True)
        self.tunings = [_Tuning(spec.rule) for _ in batch.members]
        # where each refit starts; what lies above the choice so far is dropped, as wide ones fill the memory
        self.classifiers: list[dict[float, tuple[Tensor, Tensor]]] = [{} for _ in batch.members]
        self.start: tuple[Tensor, Tensor] | None = None  # of all folds, from the λ before

    def fit(self) -> dict[int, Selected]:
        """The probes by the index of their problem."""
        batch, tuned = self.batch, len(self.grid) > 1
        start = None
        if tuned:
            self._walk()
        chosen = [t.chosen if tuned else self.grid[0] for t in self.tunings]
        if tuned:
            kept = [
                have[min(have, key=lambda x: abs(np.log(x / l2)))]
                for have, l2 in zip(self.classifiers, chosen, strict=True)
            ]
            start = (
                batch.by_group(torch.stack([weights for weights, _ in kept])),
                batch.by_group(torch.stack([intercept for _, intercept in kept])),
            )
        l2_gp = torch.tensor(chosen, dtype=torch.float64, device=batch.labels.device).view(batch.shape)
        solution = solve(batch.basis, batch.labels, batch.row_weights(), l2_gp, self.n_classes, start)
        weights, intercepts = solution.weights_gpcm.flatten(0, 1), solution.intercept_gpc.flatten(0, 1)
        converged = solution.converged_gp.flatten().tolist()
        return {
            index: Selected(
                weights[i].clone(),
                intercepts[i].clone(),
                Choice(
                    l2=chosen[i],
                    validation_loss=tuning.mean(chosen[i]) if tuned else float("nan"),
                    at_edge=tuned and chosen[i] in (min(tuning.losses), max(tuning.losses)),
                    converged=converged[i],
                ),
            )
            for i, (index, tuning) in enumerate(zip(batch.members, self.tunings, strict=True))
        }

    def _walk(self) -> None:
        """Down the grid, on while the best is the lowest, then up while the choice is the highest."""
        for l2 in self.grid:
            self._step(l2, [t.rises < 2 for t in self.tunings])
        low, high = self.grid[-1], self.grid[0]
        while low > LOWEST * 1.001:
            below = float(f"{low / 10:.6g}")
            self._step(below, [t.best == low for t in self.tunings])
            low = below
        self.start = None
        while high < HIGHEST / 1.001:
            above = float(f"{high * 10:.6g}")
            self._step(above, [t.chosen == high for t in self.tunings])
            high = above

    def _step(self, l2: float, live: list[bool]) -> None:
        """Fit all folds of the live problems at `l2` and score the rows that each left out."""
        if not any(live):
            return
        batch = self.batch
        alive = torch.tensor(live).view(batch.shape)
        index = alive.any(1 - batch.along).nonzero()[:, 0].to(batch.labels.device)
        labels = batch.part(batch.labels, index).repeat_interleave(batch.n_fits, 1)
        start = None
        if self.start is not None:
            weights, intercept = (batch.part(x, index).flatten(1, 2) for x in self.start)
            start = weights, intercept
        solution = solve(
            batch.part_of_basis(index),
            labels,
            batch.fold_weights(index),
            torch.full(labels.shape[:2], l2, dtype=torch.float64, device=labels.device),
            self.n_classes,
            start,
            tolerance=PATH_TOLERANCE,
        )
        fits = (solution.weights_gpcm, solution.intercept_gpc)
        loss = batch.losses(*fits, index).flatten(0, 1).double().cpu().numpy()
        weights, intercept = (x.view(len(x), -1, batch.n_fits, *x.shape[2:]) for x in fits)
        if len(index) == batch.shape[batch.along]:
            self.start = weights, intercept
        elif self.start is not None:
            for kept, new in zip(self.start, (weights, intercept), strict=True):
                kept.index_copy_(batch.along, index, new)
        mean_weights, mean_intercept = weights.mean(2).flatten(0, 1), intercept.mean(2).flatten(0, 1)
        members = (
            torch.arange(len(live)).view(batch.shape).index_select(batch.along, index.cpu()).flatten().tolist()
        )
        for k, i in enumerate(members):
            if live[i]:
                finite = np.isfinite(loss[k])
                clusters = batch.clusters[i]
                self.tunings[i].add(l2, loss[k][finite], None if clusters is None else clusters[finite])
                self.classifiers[i][l2] = mean_weights[k].clone(), mean_intercept[k].clone()
                limit = self.tunings[i].chosen
                self.classifiers[i] = {x: kept for x, kept in self.classifiers[i].items() if x <= limit}
