"""Newton's method for few rows, where hundreds of small operations, not their arithmetic, are what takes the time.

Each step solves its linear system by conjugate gradients (Nocedal and Wright, Numerical Optimization, algorithm
7.1), preconditioned by the start Hessian of `lbfgs`: two products and a dozen operations an iteration. The system
is solved in float32, as a direction has only to point well, and in float64 once a step has gained nothing; values,
gradients and bounds are float64, so that rounding keeps no gap from closing.
"""

from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from monoeval.probes.objective import Objective, Point
from monoeval.probes.rows import RowSpace

ESTIMATE = 1e-8
"""The estimated distance to the optimum, half the decrement, is held to this share of the penalty."""
ROUGH_GAIN = 2e-6
"""... and to this share of f where λ are only compared."""
FORCING = 0.03
"""What conjugate gradients leave of a squared residual."""
MOST_PRODUCTS = 250
"""Iterations of conjugate gradients in one step."""
SHORTEST = 1e-4
"""A step that must be shorter than this share of Newton's is none."""
ROUNDING = 1e-13
"""Share of f by which it seems to change where only rounding does."""
TINY = 1e-30
"""Probabilities below count as none in float32: denormal numbers slow products many times over."""


class Newton:
    """Minimise a convex objective on the rows of a `RowSpace` from `x` float32 [G, P, C, D + 1].

    A problem ends where its gap is proven and its estimate small, or where three steps in a row gain nothing, and
    then counts as `converged` if one of the two holds. A `rough` descent ends by its estimate alone. What it
    leaves is what `lbfgs.Descent` does: `x` float32, `value` and `gap` (relative, proven) float64 [G, P] of the
    same point in float64; `passes` are evaluations and products with the Hessian, of the whole batch so far.
    """

    def __init__(self, objective: Objective, x: Tensor, tolerance: float, rough: bool) -> None:
        assert isinstance(objective.rows, RowSpace)
        self.objective, self.tolerance, self.rough = objective, tolerance, rough
        present = objective.present[..., None].to(x.dtype)
        # a shift common to all classes changes no probability, and a penalty is smallest without it
        self.x = x - present * (x * present).sum(2, keepdim=True) / present.sum(2, keepdim=True)
        shape, device = objective.l2.shape, objective.l2.device
        self.value = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        self.gap = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        self.converged = torch.zeros(shape, dtype=torch.bool, device=device)
        self.passes = torch.zeros(shape, dtype=torch.int64, device=device)

    @cached_property
    def at(self) -> Point:
        """What a pass gives at `x`."""
        return self.objective(self.x)

    def run(self, max_passes: int) -> None:
        """Descend, at most one step's products beyond `max_passes`."""
        objective = copy(self.objective)
        assert isinstance(objective.rows, RowSpace)
        rows = _Rows(objective.rows)
        groups, problems = (torch.arange(k, device=self.x.device) for k in self.value.shape)
        x, passes = self.x.double(), 1
        value, penalty, gradient, chances = _evaluate(objective, rows, x)
        ended, idle, precise = torch.zeros_like(value, dtype=torch.bool), torch.zeros_like(value), False
        while True:
            # float32 loses directions whose curvatures lie too far apart: λ near 1e-9, rows fitted all but exactly
            precise = precise or bool(((idle > 0) & ~ended).any())
            system = _System(objective, rows, gradient, chances, torch.float64 if precise else torch.float32)
            half_decrement = 0.5 * system.decrement
            near = ROUGH_GAIN * value if self.rough else ESTIMATE * penalty
            estimated = half_decrement <= near
            stuck = (idle >= 3) | torch.tensor(passes >= max_passes, device=idle.device)
            if bool(((estimated | stuck) & ~ended).any()):
                gap = (value - self._bound(objective, x, value - penalty, gradient)) / value.clamp(min=1e-300)
                certified = gap <= self.tolerance
                converged = estimated & (certified | self.rough) | (idle >= 3) & (certified | estimated)
                new = (converged | stuck) & ~ended
                place = groups[:, None], problems[None, :]
                for mine, theirs in (
                    (self.x, x),
                    (self.value, value),
                    (self.gap, gap.clamp(min=0)),
                    (self.converged, converged),
                    (self.passes, torch.full_like(self.passes[place], passes)),
                ):
                    shape = *new.shape, *(1,) * (mine.dim() - 2)
                    mine[place] = torch.where(new.view(shape), theirs.to(mine.dtype), mine[place])
                ended = ended | new
                if bool(ended.all()):
                    return
                for along in (1, 0):
                    left = (~ended).any(1 - along)
                    if bool(left.all()):
                        continue
                    index = left.nonzero()[:, 0]
                    objective.take(along, index)
                    if along == 0:
                        groups, rows = groups[index], rows.take(index)
                    else:
                        problems = problems[index]
                    x, value, penalty, gradient, near, ended, idle = (
                        t.index_select(along, index) for t in (x, value, penalty, gradient, near, ended, idle)
                    )
                    system.take(along, index, rows)
            direction, products = system.solve(near, ended)
            slope = (gradient * direction).sum((2, 3))
            passes += products
            step = torch.ones_like(value).masked_fill(ended, 0.0)
            while True:
                far = step[..., None, None]
                # where no step is taken, a direction that is not finite must not be either
                trial = torch.where(far > 0, x + far * direction, x)
                then = _evaluate(objective, rows, trial)
                passes += 1
                gain = value - then[0]
                refused = ~(gain >= -1e-4 * step * slope - ROUNDING * value) & (step > 0)
                if not bool(refused.any()):
                    break
                step = torch.where(refused, 0.5 * step, step)
                step = step.masked_fill(step < SHORTEST, 0.0)
            idle = torch.where(gain > ROUNDING * value, 0.0, idle + 1)
            x, (value, penalty, gradient, chances) = trial, then

    @staticmethod
    def _bound(objective: Objective, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """What is proven to lie below each problem's minimum, from the gradient of f."""
        pull = gradient.clone()
        pull[..., :-1].addcmul_(x[..., :-1], objective.l2[..., None, None], value=-1)
        return objective.bound(x, loss, pull)


class _Rows:
    """Rows [G, n, D] beside a column of ones, for products in either precision."""

    def __init__(self, rows: RowSpace) -> None:
        ones = rows.coordinates_gnd.new_ones(*rows.coordinates_gnd.shape[:2], 1)
        self.single = torch.cat([rows.coordinates_gnd, ones], 2)
        self.double, self.variances = self.single.double(), rows.variances_gd

    def take(self, groups: Tensor) -> "_Rows":
        """Some groups only."""
        other = copy(self)
        other.single, other.double, other.variances = (
            t.index_select(0, groups) for t in (self.single, self.double, self.variances)
        )
        return other

    def logits(self, x: Tensor) -> Tensor:
        """[G, P, C, n] of parameters [G, P, C, D + 1]."""
        rows = self.double if x.dtype == torch.float64 else self.single
        return torch.bmm(x.flatten(1, 2), rows.mT).view(*x.shape[:3], rows.shape[1])

    def sums(self, residual: Tensor) -> Tensor:
        """Residuals [G, P, C, n] · rows, [G, P, C, D + 1]."""
        rows = self.double if residual.dtype == torch.float64 else self.single
        return torch.bmm(residual.flatten(1, 2), rows).view(*residual.shape[:3], rows.shape[2])


def _evaluate(objective: Objective, rows: _Rows, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f and its penalty [G, P], its gradient [G, P, C, D + 1], probabilities [G, P, C, n], all float64."""
    label, share = objective.labels[:, :, None], objective.share[:, :, None].double()
    z = rows.logits(x)
    z -= z.amax(2, keepdim=True)
    own = z.gather(2, label)
    loss, s = -own, objective.loss.smoothing
    if s:
        loss += s * (own - objective.mean_logit(z))
    p = z.exp_()
    mass = p.sum(2, keepdim=True)
    p /= mass
    value = ((loss + mass.log()) * share).sum((2, 3))
    residual = p * share
    residual.scatter_add_(2, label, -share)
    if s:
        objective.smooth(residual, label, share)
    gradient = rows.sums(residual)
    w = x[..., :-1]
    gradient[..., :-1].addcmul_(w, objective.l2[..., None, None])
    penalty = 0.5 * objective.l2 * w.square().sum((2, 3))
    return value + penalty, penalty, gradient, p


class _System:
    """Newton's equations at one point, Hessian · direction = -gradient, in units of the gradient.

    Tensors are of `dtype`: `p` and `weighted` by rows' shares [G, P, C, n]; of the preconditioner `mean` and
    `inverse` [G, P, C, D], `of_intercept` and `alike` [G, P, C, 1]; `residual` and `preconditioned`
    [G, P, C, D + 1], which `solve` uses up.
    """

    def __init__(
        self, objective: Objective, rows: _Rows, gradient: Tensor, chances: Tensor, dtype: torch.dtype
    ) -> None:
        self.rows = rows
        self.p = torch.threshold(chances.to(dtype), TINY, 0.0)
        self.weighted = self.p * objective.share[:, :, None]
        centre = rows.sums(torch.addcmul(self.weighted, self.weighted, self.p, value=-1))
        spread = centre[..., -1:].clamp(min=1e-12)
        l2 = objective.l2.to(dtype)[..., None, None]
        present = objective.present[..., None].to(dtype)
        self.alike = present / present.sum(2, keepdim=True)
        self.mean = centre[..., :-1] / spread
        self.inverse = present / (spread * rows.variances[:, None, None] + l2)
        self.of_intercept = present / spread
        self.l2 = l2.expand(-1, -1, 1, gradient.shape[3]).clone()
        self.l2[..., -1] = 0.0
        self.unit = torch.linalg.vector_norm(gradient, torch.inf, (2, 3)).clamp(min=1e-300)
        self.residual = (gradient / -self.unit[..., None, None]).to(dtype)
        self.preconditioned = self._precondition(self.residual)
        self.product = (self.residual * self.preconditioned).sum((2, 3))

    @property
    def decrement(self) -> Tensor:
        """Newton's squared decrement [G, P] as the preconditioner estimates it."""
        squared: Tensor = self.product.double() * self.unit.square()
        return squared

    def take(self, along: int, index: Tensor, rows: _Rows) -> None:
        """Keep some groups (along 0) or some problems (along 1)."""
        self.rows = rows
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.index_select(along, index))

    def solve(self, near: Tensor, ended: Tensor) -> tuple[Tensor, int]:
        """A direction [G, P, C, D + 1] float64 for the problems that go on, and how many products it took.

        None is solved much better than what ends its problem asks: half the decrement at most `near`.
        """
        r, z, rz, live = self.residual, self.preconditioned, self.product, ~ended
        share = (0.5 * near / (0.5 * self.decrement).clamp(min=1e-300)).to(rz.dtype)
        goal = rz * torch.where(share < 0.5, share.clamp(min=FORCING), FORCING)
        d, x, made = z.clone(), torch.zeros_like(z), 0
        while made < MOST_PRODUCTS:
            logits = self.rows.logits(d)
            u = self.weighted * logits
            u.addcmul_(self.p, u.sum(2, keepdim=True), value=-1)
            h = self.rows.sums(u)
            h.addcmul_(self.l2, d)
            curvature = (d * h).sum((2, 3))
            length = torch.where(live & (curvature > 0), rz / curvature, 0.0)[..., None, None]
            x.addcmul_(length, d)
            r.addcmul_(length, h, value=-1)
            z = self._precondition(r)
            before, rz = rz, (r * z).sum((2, 3))
            live = live & (rz > goal) & (curvature > 0)
            made += 1
            if not bool(live.any()):
                break
            d.mul_((rz / before.clamp(min=1e-38))[..., None, None]).add_(z)
        return x.double() * self.unit[..., None, None], made

    def _precondition(self, r: Tensor) -> Tensor:
        """Each class alone, centred at its mean, without what is common to all classes."""
        z, b = torch.empty_like(r), r[..., -1:]
        w = torch.addcmul(r[..., :-1], self.mean, b, value=-1, out=z[..., :-1]).mul_(self.inverse)
        torch.sub(b * self.of_intercept, (self.mean * w).sum(3, keepdim=True), out=z[..., -1:])
        return z.addcmul_(self.alike, z.sum(2, keepdim=True), value=-1)
