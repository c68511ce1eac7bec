"""Linear classifiers for many small problems, each on its own few rows, at many λ: all of it in few batches."""

from collections.abc import Sequence

import torch

from monoeval.errors import UsageError
from monoeval.probes.batch import batches
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import TOLERANCE, Grid, check_l2s, minimise
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.problem import Problem


@torch.no_grad()
def solve_each(
    codes: TrainingCodes,
    problems: Sequence[Problem],
    l2s: Sequence[float],
    n_classes: int,
    *,
    balanced: bool = False,
    tolerance: float = TOLERANCE,
) -> Grid:
    """Fit P problems on rows of shared codes at each of `l2s`, validation rows aside.

    What is known of a problem's rows is worked out once, and all its λ go on together, so that tens of thousands
    of problems are a few batched solves. As in `solve_grid`, which is for label sets on the same many rows,
    weights are for the codes as `codes` gives them, and a call that is repeated gives the same bits. Raises
    UsageError for L2 that are not positive or none, and for a problem without a row.
    """
    check_l2s(l2s)
    if not all(len(problem.rows) for problem in problems):
        raise UsageError("A probe was asked for without a row: give one at least.")
    out = Grid.empty(len(problems), len(l2s), n_classes, codes.width, codes.device)
    grid = torch.tensor(l2s, dtype=torch.float64, device=codes.device)
    for batch in batches(codes, problems, n_classes, 0, balanced, copies=len(l2s)):
        labels, weights = (t.repeat_interleave(len(l2s), 1) for t in (batch.labels, batch.weights))
        l2_gp = grid.repeat(batch.shape[1]).expand(labels.shape[:2])
        objective = Objective(batch.rows, labels, weights, l2_gp, n_classes, Loss(), False)
        members = torch.tensor(batch.members, device=codes.device)[:, None]
        place = members, torch.arange(len(l2s), device=codes.device)
        out.put(place, objective, minimise(objective, tolerance=tolerance))
    return out
