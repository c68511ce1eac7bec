"""Multinomial logistic regression for many label sets at once, by preconditioned L-BFGS without autograd.

Every problem minimises f(W, b) = Σ w_i CE_i / Σ w_i + (λ/2)·‖W‖², the intercept b free. Codes are centred and
rotated once into the eigenbasis of their covariance, where the Hessian is nearly diagonal: mean p(1-p)·Λ + λ is
the start Hessian of L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4). Neither step changes
the optimum: the intercept takes up the mean, and a rotation keeps ‖W‖.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10
"""Pairs of steps and gradient changes that L-BFGS keeps."""
WIDEST_ROTATION = 4096
"""Above this width an eigendecomposition costs more than it saves; columns then keep their own variances."""
WORKING_SET = 2**30
"""Bytes of parameters, history and logits above which problems are solved in turns."""
CHUNK, FEWEST_ROWS = 2**20, 256
"""Logits (4 MB) that stay in the cache between the two products of a pass, and the fewest rows of one product."""
NEVER = -1e4
"""Intercept of a class without a training row while solving: its probability is zero, and no infinity spreads."""
TINY = 1e-30
"""Smaller probabilities become zero: denormal numbers slow matrix products many times over."""


@dataclass(frozen=True)
class Eigenbasis:
    """Codes [G, N, M] as coordinates [G, N, D + 1] along principal axes, the last column one for the intercept."""

    coordinates_gnk: Tensor
    variances_gk: Tensor  # [G, D + 1] mean squares of the coordinates
    mean_gm: Tensor  # [G, M]
    axes_gmd: Tensor | None  # [G, M, D] orthonormal columns; None where the columns are the axes

    @classmethod
    def of(cls, codes_gnm: Tensor, used_gn: Tensor | None = None) -> "Eigenbasis":
        """Centre and rotate float32 codes; rows outside `used_gn` (padding) count for nothing and must be finite.

        With fewer rows than columns, D = N: the optimum lies in the rows' span.
        """
        n_groups, n, width = codes_gnm.shape
        use = codes_gnm.new_ones(n_groups, n) if used_gn is None else used_gn.to(codes_gnm.dtype)
        count = use.sum(1).clamp(min=1)
        mean = torch.bmm(use[:, None], codes_gnm)[:, 0] / count[:, None]
        centred = (codes_gnm - mean[:, None]).mul_(use[:, :, None])
        axes = None
        if n < width:
            axes, triangle = torch.linalg.qr(centred.mT)  # orthonormal even where rows are linearly dependent
            centred = triangle.mT
        if centred.shape[2] <= WIDEST_ROTATION:
            # in float64: LAPACK's threaded float32 routine gave NaN where many columns are zero (dead latents)
            turn = torch.linalg.eigh(torch.bmm(centred.mT, centred).double())[1].to(centred.dtype)
            if bool(torch.isfinite(turn).all()):
                axes = turn if axes is None else torch.bmm(axes, turn)
                centred = torch.bmm(centred, turn)
        coordinates = torch.cat([centred, use[:, :, None]], dim=2)
        return cls(coordinates, coordinates.square().sum(1) / count[:, None], mean, axes)

    def enter(self, weights_gpcm: Tensor, intercept_gpc: Tensor) -> Tensor:
        """Parameters [G, P, C, D + 1] of a classifier on the codes."""
        moved = intercept_gpc + torch.einsum("gpcm,gm->gpc", weights_gpcm, self.mean_gm)
        turned = weights_gpcm if self.axes_gmd is None else _per_group(weights_gpcm, self.axes_gmd)
        return torch.cat([turned, moved[..., None]], dim=3)

    def leave(self, parameters_gpck: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `enter`: weights [G, P, C, M] and intercepts [G, P, C] on the codes as they came."""
        turned, moved = parameters_gpck[..., :-1], parameters_gpck[..., -1]
        weights = turned.contiguous() if self.axes_gmd is None else _per_group(turned, self.axes_gmd.mT)
        return weights, moved - torch.einsum("gpcm,gm->gpc", weights, self.mean_gm)

    def take(self, groups: Tensor) -> "Eigenbasis":
        """Some groups only."""
        axes = None if self.axes_gmd is None else self.axes_gmd[groups]
        return Eigenbasis(self.coordinates_gnk[groups], self.variances_gk[groups], self.mean_gm[groups], axes)


@dataclass(frozen=True)
class Solution:
    """The fitted classifiers; a class without a training row has weights 0 and intercept -inf."""

    weights_gpcm: Tensor  # [G, P, C, M] float32
    intercept_gpc: Tensor  # [G, P, C] float32
    objective_gp: Tensor  # [G, P] float64
    iterations: int  # passes over the rows that the slowest problem took
    converged_gp: Tensor  # [G, P] bool


@torch.no_grad()
def solve(
    codes: Tensor | Eigenbasis,
    labels_gpn: Tensor,
    row_weights_gpn: Tensor,
    l2_gp: Tensor,
    n_classes: int,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 2e-7,
    max_iterations: int = 2000,
) -> Solution:
    """Fit P problems on each of G groups of codes [G, N, M] (or their eigenbasis, where it is used again).

    `labels_gpn` are int64 [G, P, N]; `row_weights_gpn` float32, non-negative, 0 where a row is not used; `l2_gp`
    [G, P] is λ > 0; `start` holds weights [G, P, C, M] and intercepts [G, P, C] near the optimum.
    Products are float32, sums of losses float64; the result is the same bit for bit when the call is repeated.

    A problem stops when its estimated distance to the optimum is below `tolerance`·f: either the strong-convexity
    bound ‖∇_W f‖²/2λ (proven where the intercept's gradient is zero, whose share is estimated), or half the
    quasi-Newton decrement gᵀHg together with three steps in a row that gained less than that. The second is an
    estimate, not a bound. `converged` is false where neither came true within `max_iterations` passes.
    """
    basis = codes if isinstance(codes, Eigenbasis) else Eigenbasis.of(codes)
    n_groups, n_problems, _ = labels_gpn.shape
    numbers = n_classes * basis.coordinates_gnk.shape[2]
    at_once = max(1, WORKING_SET // (4 * numbers * (2 * MEMORY + 8)))
    turns = [
        (slice(g, g + max(1, at_once // n_problems)), slice(p, p + at_once))
        for g in range(0, n_groups, max(1, at_once // n_problems))
        for p in range(0, n_problems, at_once)
    ]
    shape = (n_groups, n_problems, n_classes)
    parameters = labels_gpn.new_empty((*shape, basis.coordinates_gnk.shape[2]), dtype=torch.float32)
    objective = labels_gpn.new_empty(shape[:2], dtype=torch.float64)
    converged = labels_gpn.new_empty(shape[:2], dtype=torch.bool)
    missing = labels_gpn.new_empty(shape, dtype=torch.bool)
    begin = None if start is None else basis.enter(start[0], start[1].clamp(min=NEVER))
    iterations = 0
    for gs, ps in turns:
        descent = _Descent(
            _Objective(
                basis.coordinates_gnk[gs],
                basis.variances_gk[gs],
                labels_gpn[gs, ps],
                row_weights_gpn[gs, ps],
                l2_gp[gs, ps].double(),
                n_classes,
            ),
            None if begin is None else begin[gs, ps],
            tolerance,
        )
        iterations = max(iterations, descent.run(max_iterations))
        parameters[gs, ps], objective[gs, ps], converged[gs, ps] = descent.best, descent.best_f, descent.converged
        missing[gs, ps] = descent.missing
    weights, intercept = basis.leave(parameters)
    weights.masked_fill_(missing[..., None], 0.0)
    return Solution(weights, intercept.masked_fill_(missing, -torch.inf), objective, iterations, converged)


class _Objective:
    """f, its gradient and mean p(1-p), for parameters [G, P, C, K] on coordinates [G, N, K]."""

    def __init__(
        self, rows_gnk: Tensor, variances_gk: Tensor, labels: Tensor, weights: Tensor, l2: Tensor, n_classes: int
    ) -> None:
        self.rows, self.variances, self.l2 = rows_gnk, variances_gk, l2
        self.labels = labels[:, :, None]
        share = weights.double() / weights.sum(2, keepdim=True, dtype=torch.float64)
        self.frequency = share.new_zeros(*labels.shape[:2], n_classes).scatter_add_(2, labels, share)
        self.share = share.to(rows_gnk.dtype)[:, :, None]
        self.penalty = l2.to(rows_gnk.dtype)[:, :, None, None] * rows_gnk.new_ones(rows_gnk.shape[2])
        self.penalty[..., -1] = 0.0

    def take(self, along: int, index: Tensor) -> None:
        """Keep some groups (along 0) or some problems (along 1)."""
        for name in ("labels", "share", "frequency", "penalty", "l2"):
            setattr(self, name, getattr(self, name).index_select(along, index))
        if along == 0:
            self.rows, self.variances = self.rows[index], self.variances[index]

    def __call__(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_groups, n_problems, n_classes, _ = parameters.shape
        gradient = parameters * self.penalty
        value = 0.5 * (gradient * parameters).sum((2, 3), dtype=torch.float64)
        spread = self.frequency.new_zeros(self.frequency.shape, dtype=parameters.dtype)
        flat, flat_gradient = parameters.flatten(1, 2), gradient.flatten(1, 2)
        size = max(FEWEST_ROWS, CHUNK // (n_groups * n_problems * n_classes))
        for start in range(0, self.rows.shape[1], size):
            rows = self.rows[:, start : start + size]
            label = self.labels[..., start : start + size]
            share = self.share[..., start : start + size]
            logit = torch.bmm(flat, rows.mT).view(n_groups, n_problems, n_classes, -1)
            chance = torch.softmax(logit, 2)
            own = chance.gather(2, label)
            # the loss from the other classes' mass: 1 - p would cancel where a row is fitted well
            chance.scatter_(2, label, 0.0)
            chance.masked_fill_(chance < TINY, 0.0)
            rest = chance.sum(2, keepdim=True)
            loss = torch.where(rest < 0.5, -torch.log1p(-rest.clamp(max=0.5)), -torch.log(own.clamp(min=TINY)))
            lost = own <= TINY
            if bool(lost.any()):
                exact = torch.logsumexp(logit, 2, keepdim=True) - logit.gather(2, label)
                loss = torch.where(lost, exact, loss)
            value += (loss * share).sum((2, 3), dtype=torch.float64)
            # mean p(1-p): the true class has the same product as its complement
            chance.scatter_(2, label, -rest)
            weighted = chance * share
            spread += (weighted.abs() - weighted * chance).sum(3)
            flat_gradient.baddbmm_(weighted.flatten(1, 2), rows)
        return value, gradient, spread


class _Descent:
    """Batched L-BFGS: each problem has its own step, history and end; those that ended leave the batch."""

    def __init__(self, objective: _Objective, start: Tensor | None, tolerance: float) -> None:
        self.objective, self.tolerance = objective, tolerance
        self.missing = objective.frequency <= 0
        share = objective.frequency.clamp(min=1e-30).log().to(objective.rows.dtype)
        if start is None:
            start = share.new_zeros(*share.shape, objective.rows.shape[2])
            start[..., -1] = share
        self.best = start.clone()
        intercept = torch.where(start[..., -1] > 0.5 * NEVER, start[..., -1], share)
        self.best[..., -1] = intercept.masked_fill(self.missing, NEVER)
        self.best_f = torch.full_like(objective.l2, torch.inf)
        self.converged = torch.zeros_like(objective.l2, dtype=torch.bool)

    def run(self, max_iterations: int) -> int:
        """Descend until all problems ended, into `best`, `best_f` and `converged`; returns the passes made."""
        n_groups, n_problems = self.best_f.shape
        groups = torch.arange(n_groups, device=self.best.device)
        problems = torch.arange(n_problems, device=self.best.device)
        x = self.best
        f, gradient, spread = self.objective(x)
        history: list[tuple[Tensor, Tensor, Tensor]] = []
        step = torch.ones_like(f)
        idle = torch.zeros_like(f)
        ended = torch.zeros_like(f, dtype=torch.bool)
        passes = 1
        while True:
            start_hessian = self._start_hessian(spread)
            direction = _direction(gradient, start_hessian, history)
            slope = _dot(gradient, direction)
            bound = self._bound(gradient, spread)
            enough = self.tolerance * f
            near = (bound <= enough) | ((-0.5 * slope <= enough) & (idle >= 3))
            stuck = step < 1e-6
            over = ended | near | stuck
            if bool((over & ~ended).any()):
                place = groups[:, None], problems[None, :]
                new = over & ~ended
                self.best[place] = torch.where(new[..., None, None], x, self.best[place])
                self.best_f[place] = torch.where(new, f, self.best_f[place])
                self.converged[place] = torch.where(new, near, self.converged[place])
                ended = over
            if bool(ended.all()):
                return passes
            if passes >= max_iterations:
                place = groups[:, None], problems[None, :]
                self.best[place] = torch.where(ended[..., None, None], self.best[place], x)
                self.best_f[place] = torch.where(ended, self.best_f[place], f)
                return passes
            trial = x + (step.masked_fill(ended, 0.0))[..., None, None].to(x.dtype) * direction
            f_trial, gradient_trial, spread_trial = self.objective(trial)
            passes += 1
            gain = f - f_trial
            # near the end rounding hides the gain; the slope still tells (Hager and Zhang 2005, approximate Wolfe)
            flat = (gain.abs() <= 1e-6 * f) & (_dot(gradient_trial, direction) <= -0.8 * slope)
            taken = ((gain >= -1e-4 * step * slope) | flat) & ~ended
            idle = torch.where(taken, torch.where(gain <= enough, idle + 1, 0.0), idle)
            parabola = -0.5 * slope * step.square() / (-gain - slope * step).clamp(min=1e-300)
            shorter = torch.maximum(0.1 * step, torch.minimum(0.5 * step, parabola.nan_to_num(0.0)))
            step = torch.where(taken, 1.0, shorter)
            keep = taken[..., None, None]
            moved = torch.where(keep, trial - x, 0.0)
            turned = torch.where(keep, gradient_trial - gradient, 0.0)
            curvature = _dot(moved, turned)
            inverse = torch.where(curvature > 0, 1 / curvature.clamp(min=1e-300), 0.0)
            history = [*history[-(MEMORY - 1) :], (moved, turned, inverse)]
            x, gradient = torch.where(keep, trial, x), torch.where(keep, gradient_trial, gradient)
            f = torch.where(taken, f_trial, f)
            spread = torch.where(taken[..., None], spread_trial, spread)

            live = ~ended
            along = 0 if n_groups > 1 else 1
            left = live.any(1 - along)
            if int(left.sum()) < 0.8 * len(left):
                index = left.nonzero()[:, 0]
                self.objective.take(along, index)
                if along == 0:
                    groups = groups[index]
                else:
                    problems = problems[index]
                x, f, gradient, spread, step, idle, ended = (
                    t.index_select(along, index) for t in (x, f, gradient, spread, step, idle, ended)
                )
                history = [
                    (s.index_select(along, index), y.index_select(along, index), r.index_select(along, index))
                    for s, y, r in history
                ]

    def _start_hessian(self, spread: Tensor) -> Tensor:
        """mean p(1-p)·Λ + λ, the intercept without λ."""
        diagonal = spread[..., None] * self.objective.variances[:, None, None] + self.objective.penalty
        return diagonal.clamp_(min=1e-12)

    def _bound(self, gradient: Tensor, spread: Tensor) -> Tensor:
        """‖∇_W f‖²/2λ, and for the intercept the same with its curvature in place of λ."""
        weights = gradient[..., :-1].square().sum((2, 3), dtype=torch.float64) / self.objective.l2
        intercept = (gradient[..., -1].square() / spread.clamp(min=1e-12)).sum(2, dtype=torch.float64)
        return 0.5 * (weights + intercept)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of problems [G, P, C, K], as float64 [G, P]."""
    n_groups, n_problems = a.shape[:2]
    flat_a, flat_b = a.reshape(n_groups * n_problems, 1, -1), b.reshape(n_groups * n_problems, -1, 1)
    return torch.bmm(flat_a, flat_b).view(n_groups, n_problems).double()


def _direction(gradient: Tensor, start_hessian: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """-H·gradient by the two-loop recursion; a pair with inverse curvature 0 (a refused step) has no effect."""
    direction = -gradient
    shares = []
    for moved, turned, inverse in reversed(history):
        share = (inverse * _dot(moved, direction)).to(direction.dtype)[..., None, None]
        direction.addcmul_(share, turned, value=-1)
        shares.append(share)
    direction /= start_hessian
    for (moved, turned, inverse), share in zip(history, reversed(shares), strict=True):
        back = (inverse * _dot(turned, direction)).to(direction.dtype)[..., None, None]
        direction.addcmul_(share - back, moved)
    return direction


def _per_group(a_gpcx: Tensor, b_gxy: Tensor) -> Tensor:
    """a · b for each group, as one product a group."""
    return torch.bmm(a_gpcx.flatten(1, 2), b_gxy).view(*a_gpcx.shape[:3], b_gxy.shape[2])
