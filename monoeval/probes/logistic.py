"""Linear classifiers for many label sets at once: one objective, its descent, and the path over λ."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monoeval.errors import UsageError
from monoeval.hardware import one_thread, worth_reducing
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.lbfgs import COPIES, Descent
from monoeval.probes.newton import Newton
from monoeval.probes.objective import Loss, Objective, Point
from monoeval.probes.rows import RowSpace, all_rows

TOLERANCE = 1e-4
"""Relative, proven: (f - lower bound)/f at most this where a solve ends."""
MOST_PASSES = 2000
WORKING_SET = 5 * 2**26
"""Bytes of parameters and history above which problems are solved in turns: 50 at 512 × 100 classes at once; of
wide sparse ones each alone, which also took 12 % less time than two at once."""
SHARED_WORK = 2e9
"""Multiplications of a product from which threads share it."""
REDUCED_WORK = 1e9
"""Multiplications of a product below which its speed does not matter."""
FEW_ROWS = 512
"""Up to here Newton's method is faster: at 160 rows 1.2 (L2 of 0.1) to 4 times (1e-5), at 400 rows 0.8 to 3 times;
at 800 rows L-BFGS is, but at the smallest L2."""


def at_once(width: int, n_classes: int) -> int:
    """How many problems on `width` coordinates fit into the working set."""
    return max(1, WORKING_SET // (4 * COPIES * n_classes * (width + 1)))


@torch.no_grad()
def minimise(
    objective: Objective,
    x: Tensor | None = None,
    at: Point | None = None,
    *,
    tolerance: float = TOLERANCE,
    rough: bool = False,
    max_passes: int = MOST_PASSES,
) -> Descent | Newton:
    """Minimise `objective`, from parameters `x` [G, P, C, D + 1] near its optimum and what a pass gives there.

    A problem ends where its duality gap, proven for the free intercept too (see `Objective.bound`), is at most
    `tolerance`·f, and its estimated distance to the optimum, half the quasi-Newton decrement, at most a small
    share of the penalty. Where rounding keeps the gap from closing (λ below about 1e-8), a few steps in a row
    that gain nothing end it too, and `gap` says what is proven in the end. `converged` is false where none of it
    came true in `max_passes`.

    Cross-entropy, smoothed or not, on at most FEW_ROWS rows of a `RowSpace` is left to Newton's method, in float64
    and to a smaller estimate, and so is what L-BFGS in float32 could not certify on more rows of one. All else is
    L-BFGS. Losses that are not convex have no bound (their gap is infinite): they start from the optimum of
    cross-entropy where no `x` is given, and end by the estimate.

    Where the machine is faster at them, products are reduced: those of the curvature, and those of the gradient
    where their rounding cannot show in the gap. A `rough` descent makes all of them so, and stops earlier, where
    a step gains next to nothing. Its losses serve to compare λ; its gap is not proven.
    """
    if x is None and objective.loss.convex:
        x, at = objective.origin()
    elif x is None:
        x = minimise(objective.convex(), tolerance=tolerance, rough=rough, max_passes=max_passes).x
    device, work = objective.rows.device, float(objective.rows.n) * x.numel()
    suits_newton = objective.loss.convex and isinstance(objective.rows, RowSpace)
    if suits_newton and objective.rows.n <= FEW_ROWS:
        newton = Newton(objective, x, tolerance, rough)
        with one_thread() if work < SHARED_WORK else nullcontext():
            newton.run(max_passes)
        return newton
    objective = copy(objective)
    if not objective.rows.sparse and work >= REDUCED_WORK and worth_reducing(device.type):
        objective.reduced_curvature = True
        objective.reduced_gradient = rough or bool((objective.rounding() <= tolerance / 10).all())
        objective.reduced_logits = rough
    descent = Descent(copy(objective), x, at, tolerance, rough)
    with one_thread() if work < SHARED_WORK else nullcontext():
        descent.run(max_passes)
        if not rough and suits_newton:
            groups = (descent.gap > tolerance).any(1).nonzero()[:, 0]
            if len(groups):
                objective.take(0, groups)
                last = Newton(objective, descent.x[groups], tolerance, rough)
                last.run(max_passes)
                descent.put(groups, last)
    return descent


@dataclass(frozen=True)
class Grid:
    """P label sets × L penalties, fitted."""

    weights_plcm: Tensor  # float32
    intercept_plc: Tensor  # float32; -inf for classes without a row
    objective_pl: Tensor  # float64
    gap_pl: Tensor  # float64, relative and proven
    passes_pl: Tensor  # int64
    converged_pl: Tensor  # bool

    @classmethod
    def empty(cls, n_problems: int, n_l2s: int, n_classes: int, width: int, device: torch.device) -> "Grid":
        """Room for the answers."""
        shape = n_problems, n_l2s
        return cls(
            torch.empty(*shape, n_classes, width, device=device),
            torch.empty(*shape, n_classes, device=device),
            torch.empty(shape, dtype=torch.float64, device=device),
            torch.empty(shape, dtype=torch.float64, device=device),
            torch.empty(shape, dtype=torch.int64, device=device),
            torch.empty(shape, dtype=torch.bool, device=device),
        )

    def put(self, place: tuple[Tensor, Tensor], objective: Objective, descent: Descent | Newton) -> None:
        """Fill in the answers of a solve, whose problems [G, P] in order are those at `place`."""
        weights, intercept = objective.rows.leave(descent.x)
        intercept = intercept.masked_fill(~objective.present, -torch.inf)
        shape = np.broadcast_shapes(*(index.shape for index in place))
        for mine, theirs in (
            (self.weights_plcm, weights),
            (self.intercept_plc, intercept),
            (self.objective_pl, descent.value),
            (self.gap_pl, descent.gap),
            (self.passes_pl, descent.passes),
            (self.converged_pl, descent.converged),
        ):
            mine[place] = theirs.reshape(*shape, *mine.shape[2:])


def check_l2s(l2s: Sequence[float]) -> None:
    """Raise UsageError where there is no L2, or one that is not positive and finite."""
    if not l2s:
        raise UsageError("Probes were asked for at no L2: give one at least.")
    for l2 in l2s:
        if not 0 < l2 < math.inf:
            raise UsageError(
                f"An L2 of {l2:g} was asked for, and the intercept alone is free of one: use a finite one above 0."
            )


@torch.no_grad()
def solve_grid(
    codes: TrainingCodes,
    labels_pn: Tensor,
    l2s: Sequence[float],
    n_classes: int,
    *,
    row_weights_pn: Tensor | None = None,
    loss: Loss | None = None,
    tolerance: float = TOLERANCE,
) -> Grid:
    """Fit P label sets [P, N] on shared codes at each of `l2s`, from the largest down, each from the one before.

    Losses that are not convex start from the optimum of cross-entropy at the same λ instead.
    `row_weights_pn` are non-negative, 0 where a row is not used. Products are float32,
    sums of losses float64; a call that is repeated gives the same bits. The weights are for the codes
    as `codes` gives them, its scale divided out. Raises UsageError for L2 that are not positive or none, and for a
    problem without a row.
    """
    n, n_problems = len(codes), len(labels_pn)
    check_l2s(l2s)
    if row_weights_pn is not None and not bool((row_weights_pn.sum(1) > 0).all()):
        raise UsageError("A probe was asked for without a row of positive weight: give one at least.")
    rows = all_rows(codes)
    if row_weights_pn is None:
        row_weights_pn = torch.ones(n_problems, n, device=rows.device)
    out = Grid.empty(n_problems, len(l2s), n_classes, codes.width, rows.device)
    size = at_once(rows.variances_gd.shape[1], n_classes)
    for first in range(0, n_problems, size):
        p = slice(first, first + size)
        labels = labels_pn[None, p]
        placeholder = torch.ones(labels.shape[:2], dtype=torch.float64, device=rows.device)
        whole = Objective(rows, labels, row_weights_pn[None, p], placeholder, n_classes, loss or Loss(), False)
        x = at = None
        for position in sorted(range(len(l2s)), key=lambda k: -l2s[k]):
            here = whole.at(placeholder * l2s[position])
            descent = minimise(here.convex(), x, at, tolerance=tolerance)
            x, at = descent.x, descent.at
            if not here.loss.convex:
                descent = minimise(here, x)
            members = torch.arange(first, first + labels.shape[1], device=rows.device)
            out.put((members, torch.full_like(members, position)), here, descent)
    return out
