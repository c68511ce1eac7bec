"""Batched L-BFGS: each problem has its own step, history and end, and those that ended leave the batch.

The start Hessian (Nocedal and Wright, Numerical Optimization, algorithm 7.4) is what makes it fast. For class c
it is s_c·[[Λ + m_c m_cᵀ, m_c], [m_cᵀ, 1]] + λ on the weights, in the eigenbasis Λ of the codes' covariance,
where s_c is the mean of p_c(1 - p_c) over rows and m_c the mean row under those weights: what a class is
uncertain about lies around its own mean, not the data's, and without m_c that costs three times the passes.
Centring each class at its m_c makes it diagonal again. Directions common to all classes change no probability
and are left out.
"""

import torch
from torch import Tensor

from monoeval.probes.newton import Newton
from monoeval.probes.objective import Objective, Point

MEMORY = 5
"""Pairs of steps and gradient changes; 10, 20 and 40 saved no pass in trials."""
COPIES = 2 * MEMORY + 18
"""Tensors of the size of the parameters that a descent holds at most."""
ESTIMATE = 1e-6
"""The estimated distance to the optimum, half the quasi-Newton decrement, is held to this share of the penalty."""
ROUGH_GAIN = 2e-5
"""A rough descent leaves a problem after a pass that gained less than this share of f."""
ROUGH_PROMISE = 1e-3
"""... or after a refused step, where the model does not promise more than this share of f: reduced products
refuse steps near the end, but far from it a shorter step is all that is needed."""
CLOSING = 0.8
"""A pass that leaves this share of the gap, or less, gains something where f no longer falls."""
ROUNDING = 0.1
"""Units of the last place by which f seems to change where only rounding does."""


class Descent:
    """Minimise an objective from `x` [G, P, C, D + 1] until each problem is certified within `tolerance`.

    `at` is what a pass gives at `x`, where that is known already. A `rough` descent also ends at the first step
    that gains next to nothing, or is refused where little is to be gained. Afterwards `x`, `at`, `value`, `gap`
    (relative, proven), `converged` and `passes` are those of each problem's last point.
    """

    def __init__(self, objective: Objective, x: Tensor, at: Point | None, tolerance: float, rough: bool) -> None:
        self.objective, self.tolerance, self.rough = objective, tolerance, rough
        self.x, self.made = x.clone(), 0
        if at is None:
            at, self.made = objective(x), 1
        self.at = Point(*(part.clone() for part in at.parts()))
        shape, device = objective.l2.shape, objective.l2.device
        self.value = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        self.gap = torch.full(shape, torch.inf, dtype=torch.float64, device=device)
        self.converged = torch.zeros(shape, dtype=torch.bool, device=device)
        self.passes = torch.zeros(shape, dtype=torch.int64, device=device)

    def run(self, max_passes: int) -> None:
        """Descend."""
        objective = self.objective
        groups, problems = (torch.arange(k, device=self.x.device) for k in self.value.shape)
        x, at, passes = self.x, self.at, self.made
        now = objective.weigh(x, at)
        value, penalty, gradient, bound = now.value, now.penalty, now.gradient, now.bound
        history: list[tuple[Tensor, Tensor, Tensor]] = []
        step, idle, lowest = torch.ones_like(value), torch.zeros_like(value), value
        narrowest = torch.full_like(value, torch.inf)
        ended = torch.zeros_like(value, dtype=torch.bool)
        while True:
            direction = self._direction(gradient, at, history)
            slope = _dot(gradient, direction)
            gap = (value - bound).clamp(min=0)
            certified = gap <= self.tolerance * value
            # by the penalty, not f: under a large λ f is all but constant, and what it says of W is little
            estimated = -0.5 * slope <= ESTIMATE * penalty
            if self.rough:
                hopeless = (step < 1) & (-0.5 * slope <= ROUGH_PROMISE * value)
                near = (certified & estimated) | (idle >= 1) | hopeless
            else:
                closing = ~certified & (gap < CLOSING * narrowest)
                narrowest, idle = torch.where(closing, gap, narrowest), torch.where(closing, 0.0, idle)
                # rounding keeps some gaps from closing and some estimates from coming true: passes that gain
                # nothing else end a problem too, where the other of the two says that it is near
                near = (certified | ~torch.isfinite(bound) | (idle >= 5)) & estimated | certified & (idle >= 10)
            new = (near | (step < 1e-6) | (passes >= max_passes)) & ~ended
            if bool(new.any()):
                place = groups[:, None], problems[None, :]
                self.at.put(place, new, at)
                for mine, theirs in (
                    (self.x, x),
                    (self.value, value),
                    (self.gap, gap / value.clamp(min=1e-300)),
                    (self.converged, near),
                    (self.passes, torch.full_like(value, passes, dtype=torch.int64)),
                ):
                    mine[place] = torch.where(new.view(*new.shape, *(1,) * (mine.dim() - 2)), theirs, mine[place])
                ended = ended | new
                if bool(ended.all()):
                    return
            trial = x + _wide(step.masked_fill(ended, 0.0)).to(x.dtype) * direction
            there = objective(trial)
            passes += 1
            then = objective.weigh(trial, there)
            gain = value - then.value
            little = (ROUGH_GAIN if self.rough else ROUNDING * torch.finfo(x.dtype).eps) * value
            # near the end rounding hides the gain; the slope still tells (Hager and Zhang 2005, approximate Wolfe)
            flat = (gain.abs() <= 1e-6 * value) & (_dot(then.gradient, direction) <= -0.8 * slope)
            taken = ((gain >= -1e-4 * step * slope) | flat) & ~ended
            fell = taken & (then.value < lowest - little)
            lowest = torch.where(fell, then.value, lowest)
            # far from the end a rough descent's refused steps only ask for shorter ones
            idle = torch.where(fell, 0.0, idle + (taken | (not self.rough)))
            parabola = -0.5 * slope * step.square() / (-gain - slope * step).clamp(min=1e-300)
            shorter = torch.maximum(0.1 * step, torch.minimum(0.5 * step, parabola.nan_to_num(0.0)))
            step = torch.where(taken, 1.0, shorter)
            moved = torch.where(_wide(taken), trial - x, 0.0)
            turned = torch.where(_wide(taken), then.gradient - gradient, 0.0)
            curvature = _dot(moved, turned)
            inverse = torch.where(curvature > 0, 1 / curvature.clamp(min=1e-300), 0.0)
            history = [*history[-(MEMORY - 1) :], (moved, turned, inverse)]
            x, gradient = torch.where(_wide(taken), trial, x), torch.where(_wide(taken), then.gradient, gradient)
            value, penalty = torch.where(taken, then.value, value), torch.where(taken, then.penalty, penalty)
            bound = torch.maximum(bound, then.bound)  # a bound from any point holds
            there.mix(at)
            at = there.where(taken, at)

            along = 0 if len(groups) > 1 else 1
            left = (~ended).any(1 - along)
            if not bool(left.all()):
                index = left.nonzero()[:, 0]
                objective.take(along, index)
                if along == 0:
                    groups = groups[index]
                else:
                    problems = problems[index]
                x, gradient, value, penalty, bound, lowest, step, idle, ended, narrowest = (
                    t.index_select(along, index)
                    for t in (x, gradient, value, penalty, bound, lowest, step, idle, ended, narrowest)
                )
                at = at.take(along, index)
                history = [
                    (s.index_select(along, index), y.index_select(along, index), r.index_select(along, index))
                    for s, y, r in history
                ]

    def put(self, groups: Tensor, other: "Descent | Newton") -> None:
        """Take over these groups from a descent that went on with them."""
        other.passes += self.passes[groups]
        for name in ("x", "value", "gap", "converged", "passes"):
            mine = getattr(self, name)
            mine[groups] = getattr(other, name).to(mine.dtype)
        for part, theirs in zip(self.at.parts(), other.at.parts(), strict=True):
            part[groups] = theirs

    def _direction(self, gradient: Tensor, at: Point, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """-H·gradient by the two-loop recursion; a pair with inverse curvature 0 (a refused step) does nothing."""
        direction = -gradient
        shares = []
        for moved, turned, inverse in reversed(history):
            share = _wide(inverse * _dot(moved, direction)).to(direction.dtype)
            direction.addcmul_(share, turned, value=-1)
            shares.append(share)
        self._start(direction, at)
        for (moved, turned, inverse), share in zip(history, reversed(shares), strict=True):
            back = _wide(inverse * _dot(turned, direction)).to(direction.dtype)
            direction.addcmul_(share - back, moved)
        return direction

    def _start(self, direction: Tensor, at: Point) -> None:
        """Apply the inverse start Hessian, in place, on the space where the classes' parameters sum to zero."""
        objective = self.objective
        present = objective.present[..., None].to(direction.dtype)
        share = present / present.sum(2, keepdim=True)
        direction -= (direction * present).sum(2, keepdim=True) * share
        seen = at.seen[..., None]
        # a first pass may have looked where a problem has no rows; p(1 - p) is a quarter at most
        s = torch.where(seen > 0, at.spread / seen.clamp(min=1e-30), 0.25).clamp(min=1e-12).to(direction.dtype)
        m = at.centre / at.spread.clamp(min=1e-30).to(direction.dtype)[..., None]
        weights, intercept = direction[..., :-1], direction[..., -1:]
        weights -= m * intercept
        objective.rows.whiten(weights, s, objective.l2.to(direction.dtype))
        intercept /= s[..., None]
        intercept -= (m * weights).sum(3, keepdim=True)
        direction -= (direction * present).sum(2, keepdim=True) * share
        direction *= present


def _wide(values: Tensor) -> Tensor:
    return values[..., None, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of problems [G, P, C, K], as float64 [G, P]."""
    return (a * b).sum((2, 3)).double()
