"""What a probe minimises, for many label sets at once: value, gradient, curvature, and a proven lower bound.

f(W, b) = Σ ω_i ℓ(y_i, W x_i + b) + (λ/2)·‖W‖², Σ ω = 1, the intercept b free. No autograd: logits and gradient are
one matrix product each for all problems, and what lies between is done in place on chunks that stay in the cache.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from monoeval.hardware import reduced
from monoeval.probes.rows import CHUNK, Rows
from monoeval.probes.spec import GCE, SCE, Gradient, LabelSmoothing

NEVER = -1e4
"""Intercept of a class without a training row while solving: its probability is zero, and no infinity spreads."""
LOWEST_EXPONENT = -60.0
"""Smaller exponents are raised to this one (9e-27): denormal numbers slow matrix products many times over."""
SAMPLED = 4
"""Curvature is read off every fourth chunk, another fourth in each pass, and averaged over passes."""
FADE = 0.5
"""How much the curvature of the points before counts."""
ROUNDED = 2.0**-9
"""Largest relative error of a number rounded to bfloat16."""
LOG_ZERO = -4.0
"""What reverse cross-entropy takes for log 0 (Wang et al. 2019)."""


@dataclass(frozen=True)
class Loss:
    """ℓ as a function of the probabilities; its gradient by the logits is factor · (p - target).

    With `smoothing` s the target is (1 - s)·one-hot + s/C over the classes that have rows. With `q`, ℓ is (1 -
    p_y^q)/q and the factor p_y^q. Else ℓ is α·CE - log(0)·β·(1 - p_y) and the factor α - log(0)·β·p_y, which is
    cross-entropy as it stands. The last two are taken as not convex, without a lower bound.
    """

    smoothing: float = 0.0
    q: float | None = None
    alpha: float = 1.0
    beta: float = 0.0

    @classmethod
    def of(cls, spec: Gradient) -> "Loss":
        if isinstance(spec, LabelSmoothing):
            return cls(smoothing=spec.smoothing)
        if isinstance(spec, GCE):
            return cls(q=spec.q)
        return cls(alpha=spec.alpha, beta=spec.beta) if isinstance(spec, SCE) else cls()

    @property
    def convex(self) -> bool:
        return self.q is None and self.beta == 0 and self.alpha == 1

    def factor(self, own: Tensor) -> Tensor | None:
        """What the residual p - e is multiplied by, from the probabilities of the true class; None: nothing."""
        if self.q is not None:
            return own.pow(self.q)
        return self.alpha - LOG_ZERO * self.beta * own if self.beta or self.alpha != 1 else None

    def value(self, cross_entropy: Tensor, rest: Tensor) -> Tensor:
        """ℓ of each row, from its cross-entropy and 1 - p_y; smoothing is added elsewhere."""
        if self.q is not None:
            return -torch.expm1(-self.q * cross_entropy) / self.q
        if self.beta == 0 and self.alpha == 1:
            return cross_entropy
        return self.alpha * cross_entropy - LOG_ZERO * self.beta * rest


@dataclass
class Point:
    """What one pass over the rows gives at parameters [G, P, C, D + 1], whatever λ is."""

    loss: Tensor  # [G, P] float64, Σ ω ℓ
    gradient: Tensor  # [G, P, C, D + 1] float32, of Σ ω ℓ
    seen: Tensor  # [G, P] Σ ω of the rows that curvature is read off, and over them
    spread: Tensor  # [G, P, C] Σ ω p(1-p)
    centre: Tensor  # [G, P, C, D] Σ ω p(1-p) x
    losses: Tensor  # [G, P, n] ℓ of each row, those of weight 0 included; [G, P, 0] where not asked for

    def parts(self) -> Sequence[Tensor]:
        return self.loss, self.gradient, self.seen, self.spread, self.centre, self.losses

    def where(self, condition: Tensor, other: "Point") -> "Point":
        """This point where `condition` [G, P] holds, the other elsewhere."""
        both = zip(self.parts(), other.parts(), strict=True)
        return Point(*(torch.where(_like(condition, a), a, b) for a, b in both))

    def put(self, place: tuple[Tensor, Tensor], condition: Tensor, other: "Point") -> None:
        """Take over the other's problems where `condition` holds; they lie at `place` in this one."""
        for mine, theirs in zip(self.parts(), other.parts(), strict=True):
            mine[place] = torch.where(_like(condition, theirs), theirs, mine[place])

    def mix(self, before: "Point") -> None:
        """Average the curvature, which each pass reads off other rows, with what was known before."""
        self.seen = self.seen + FADE * before.seen
        self.spread = self.spread + FADE * before.spread
        self.centre = self.centre.add_(before.centre, alpha=FADE)

    def take(self, along: int, index: Tensor) -> "Point":
        """Some groups (along 0) or some problems (along 1)."""
        return Point(*(part.index_select(along, index) for part in self.parts()))


@dataclass(frozen=True)
class Weighed:
    """A point under some λ."""

    value: Tensor  # [G, P] float64, f
    penalty: Tensor  # [G, P] float64, (λ/2)·‖W‖²
    gradient: Tensor  # [G, P, C, D + 1] float32, of f
    bound: Tensor  # [G, P] float64, no problem's minimum lies below it; -inf where the loss is not convex


class Objective:
    """f for P problems on each of G groups of rows, each with its own labels, weights and λ."""

    def __init__(
        self,
        rows: Rows,
        labels_gpn: Tensor,
        row_weights_gpn: Tensor,
        l2_gp: Tensor,
        n_classes: int,
        loss: Loss,
        row_losses: bool,
    ) -> None:
        self.rows, self.labels, self.l2, self.loss = rows, labels_gpn, l2_gp, loss
        total = row_weights_gpn.sum(2, keepdim=True, dtype=torch.float64)
        self.share = (row_weights_gpn / total).to(torch.float32)
        self.frequency = total.new_zeros(*labels_gpn.shape[:2], n_classes)
        self.frequency.scatter_add_(2, labels_gpn, self.share.double())
        self.present = self.frequency > 0
        self.row_losses, self.passes = row_losses, 0
        self.reduced_curvature = self.reduced_gradient = self.reduced_logits = False
        targets = self._targets()
        self.mean_gpd, self.targets_gpcd = targets.sum(2)[..., :-1], targets[..., :-1]
        self.target_frequency = self._smoothed(self.frequency, self.frequency.new_ones(()))

    def _smoothed(self, frequency: Tensor, total: Tensor) -> Tensor:
        """Weighted sums of targets, from those of one-hot labels [G, P, C, ...] and of all rows."""
        s = self.loss.smoothing
        if not s:
            return frequency
        present = _like(self.present, frequency).to(frequency.dtype)
        return (1 - s) * frequency + s * present / present.sum(2, keepdim=True) * total

    def _targets(self) -> Tensor:
        """Σ ω target x [G, P, C, D + 1], which the lower bound needs: half a pass."""
        n_groups, n_problems, n_classes = self.frequency.shape
        x = self.share.new_zeros(n_groups, n_problems, n_classes, self.rows.variances_gd.shape[1] + 1)
        weights, _ = self.rows.begin(x)
        sums = torch.zeros_like(weights)
        for chunk in self.rows.chunks(n_problems * n_classes * n_groups):
            label, share = self.labels[:, :, None, chunk.rows], self.share[:, :, None, chunk.rows]
            hot = share.new_zeros(n_groups, n_problems, n_classes, share.shape[3]).scatter_(2, label, share)
            chunk.add(sums, hot.flatten(1, 2))
        out = self.rows.end(sums, self.frequency.float())
        return self._smoothed(out, out.sum(2, keepdim=True))

    def at(self, l2_gp: Tensor) -> "Objective":
        """The same problems at other λ."""
        other = copy(self)
        other.l2 = l2_gp
        return other

    def convex(self) -> "Objective":
        """The same problems under a loss with one optimum, from which those that have several are started.

        Without it a path from a large λ, where all probabilities are alike, leads to poor stationary points: the
        gradient of GCE vanishes with the probability of the true class.
        """
        if self.loss.convex:
            return self
        other = copy(self)
        other.loss = Loss()
        return other

    def _reduced(self, wanted: bool) -> AbstractContextManager[None]:
        return reduced(self.rows.device) if wanted else nullcontext()

    def rounding(self) -> Tensor:
        """What reduced products of the gradient would add to the gap [G, P], as a share of f.

        Both factors, residual r and row x, are rounded with a relative variance v each, so the gradient's squared
        error is 2v Σ ω²|r|²|x|². With |r|² ≤ 2ℓ and the mean |x|² of one that codes are scaled to, this is at most
        4v f Σ ω², and the gap holds 1/2λ of it.
        """
        return 2 * ROUNDED**2 / 3 * self.share.square().sum(2) / self.l2

    def take(self, along: int, index: Tensor) -> None:
        """Keep some groups (along 0) or some problems (along 1)."""
        for name in (
            "labels",
            "share",
            "frequency",
            "present",
            "l2",
            "mean_gpd",
            "targets_gpcd",
            "target_frequency",
        ):
            setattr(self, name, getattr(self, name).index_select(along, index))
        if along == 0:
            self.rows = self.rows.take(index)

    def __call__(self, x: Tensor) -> Point:
        """One pass over the rows, without waiting for the device."""
        n_groups, n_problems, n_classes, _ = x.shape
        weights, offset = self.rows.begin(x)
        gradient, centre = torch.zeros_like(weights), torch.zeros_like(weights)
        value, seen = torch.zeros_like(self.l2), torch.zeros_like(self.l2)
        total, spread = torch.zeros_like(self.frequency), torch.zeros_like(self.frequency)
        losses = x.new_empty(n_groups, n_problems, self.rows.n if self.row_losses else 0)
        n_logits = n_groups * n_problems * n_classes
        size = self.rows.chunk_rows(n_logits) * n_logits
        room, scratch = x.new_empty(size), x.new_empty(size)  # once a pass, as fresh pages are slow
        few = self.rows.n * n_logits <= SAMPLED * CHUNK
        for number, chunk in enumerate(self.rows.chunks(n_logits)):
            label, share = self.labels[:, :, None, chunk.rows], self.share[:, :, None, chunk.rows]
            with self._reduced(self.reduced_logits):
                z = chunk.logits(weights, offset, room)
            z = z.view(n_groups, n_problems, n_classes, z.shape[2])
            z -= z.amax(2, keepdim=True)
            ahead = z.gather(2, label)
            smooth = self.mean_logit(z) if self.loss.smoothing else None
            z.clamp_(min=LOWEST_EXPONENT).exp_()
            own = ahead.clamp(min=LOWEST_EXPONENT).exp()
            z.scatter_(2, label, 0.0)
            rest = z.sum(2, keepdim=True)  # the others' mass: 1 - p would cancel where a row is fitted well
            mass = own + rest
            cross_entropy = torch.where(ahead < 0, mass.log() - ahead, torch.log1p(rest))
            own /= mass
            rest /= mass
            loss = self.loss.value(cross_entropy, rest)
            if smooth is not None:
                loss = loss + self.loss.smoothing * (ahead - smooth)
            if self.row_losses:
                losses[:, :, chunk.rows] = loss[:, :, 0]
            value += (loss * share).sum((2, 3), dtype=torch.float64)
            factor = self.loss.factor(own)
            pull = share if factor is None else share * factor
            if few or (number + self.passes) % SAMPLED == 0:
                z /= mass
                curved = (
                    torch.addcmul(z, z, z, value=-1, out=_as(scratch, z)).scatter_(2, label, own * rest).mul_(pull)
                )
                seen += share.sum((2, 3))
                spread += curved.sum(3)
                with self._reduced(self.reduced_curvature):
                    chunk.add(centre, curved.flatten(1, 2))
                z *= pull
            else:
                z *= pull / mass
            z.scatter_(2, label, -pull * rest)
            if smooth is not None:
                self.smooth(z, label, pull)
            total += z.sum(3)
            with self._reduced(self.reduced_gradient):
                chunk.add(gradient, z.flatten(1, 2))
        self.passes += 1
        centre = self.rows.end(centre, spread.to(x.dtype))[..., :-1]
        return Point(value, self.rows.end(gradient, total.to(x.dtype)), seen, spread, centre, losses)

    def origin(self) -> tuple[Tensor, Point]:
        """Weights 0 with the intercepts that fit the class frequencies, and what a pass gives there (convex ℓ)."""
        x = self.share.new_zeros(*self.frequency.shape, self.rows.variances_gd.shape[1] + 1)
        frequency = self.target_frequency
        x[..., -1] = torch.where(self.present, frequency.clamp(min=1e-30).log(), NEVER)
        losses = x.new_empty(*self.l2.shape, 0)
        if self.row_losses:
            s, b = self.loss.smoothing, x[..., -1]
            mean = torch.where(self.present, b, 0.0).sum(2, keepdim=True) / self.present.sum(2, keepdim=True)
            losses = -(1 - s) * b.gather(2, self.labels) - s * mean
        spread = frequency * (1 - frequency)
        p, mean_gpcd = frequency[..., None].to(x.dtype), self.mean_gpd[:, :, None]
        gradient = torch.zeros_like(x)
        gradient[..., :-1] = p * mean_gpcd - self.targets_gpcd
        loss = -torch.special.xlogy(frequency, frequency).sum(2)
        return x, Point(loss, gradient, torch.ones_like(self.l2), spread, p * (1 - p) * mean_gpcd, losses)

    def adopt(self, x: Tensor) -> Tensor:
        """Parameters that were found for other rows, where other classes may have been missing."""
        usual = self.target_frequency.clamp(min=1e-30).log().to(x.dtype)
        x = x.masked_fill(~self.present[..., None], 0.0)
        x[..., -1] = torch.where(self.present, torch.where(x[..., -1] > LOWEST_EXPONENT, x[..., -1], usual), NEVER)
        return x

    def weigh(self, x: Tensor, point: Point) -> Weighed:
        """The point of `x` under this objective's λ."""
        w = x[..., :-1]
        penalty = 0.5 * self.l2 * w.square().sum((2, 3), dtype=torch.float64)
        gradient = point.gradient.clone()
        gradient[..., :-1].addcmul_(w, self.l2[..., None, None].to(x.dtype))
        return Weighed(point.loss + penalty, penalty, gradient, self.bound(x, point.loss, point.gradient))

    def mean_logit(self, z: Tensor) -> Tensor:
        """Mean logit [G, P, 1, n] of the classes that have rows."""
        present = self.present[..., None].to(z.dtype)
        return (z * present).sum(2, keepdim=True) / present.sum(2, keepdim=True)

    def smooth(self, z: Tensor, label: Tensor, pull: Tensor) -> None:
        """Turn share·(p - e) into share·(p - target), in place."""
        s, present = self.loss.smoothing, self.present[..., None].to(z.dtype)
        z -= pull * (s * present / present.sum(2, keepdim=True))
        z.scatter_add_(2, label, s * pull)

    def bound(self, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """A lower bound [G, P] on the minimum, from Fenchel duality; `loss` is Σ ω ℓ at `x`, with its gradient.

        Any rows of probabilities p with Σ ω p = Σ ω target (the free intercept's condition) give the bound Σ ω
        H(p_i) - ‖Σ ω (p_i - target_i) x_i‖²/2λ, and at p = softmax(W x + b) the entropies sum to Σ ω H(p) = Σ ω
        ℓ - ⟨∇ Σ ω ℓ, (W, b)⟩. The model's own p miss the condition by the intercept's gradient; (1 - t)·p + t·q
        meets it, with t the smallest share for which the distribution q over classes is not negative, and
        entropy is concave. Exact but for rounding.
        """
        if not self.loss.convex:
            return torch.full_like(loss, -torch.inf)
        w, b = x[..., :-1], x[..., -1].double()
        pull, tilt = gradient[..., :-1], gradient[..., -1].double()
        b = torch.where(self.present, b - (self.target_frequency * b).sum(2, keepdim=True), 0.0)
        tilt = torch.where(self.present, tilt, 0.0)
        tilt = tilt - tilt.sum(2, keepdim=True) * self.target_frequency  # it sums to zero but for rounding
        mean_p = (self.target_frequency + tilt).clamp(min=1e-300)
        t = torch.where(self.present, tilt / mean_p, 0.0).amax(2).clamp(0, 1)
        q = ((self.target_frequency - (1 - t)[..., None] * mean_p) / t.clamp(min=1e-300)[..., None]).clamp(min=0)
        entropy_q: Tensor = -torch.special.xlogy(q, q).sum(2)
        slope = (pull * w).sum((2, 3), dtype=torch.float64) + (tilt * b).sum(2)
        entropy = loss - slope
        t_, q_ = t[..., None, None].to(x.dtype), q[..., None].to(x.dtype)
        moved = pull - t_ * (pull + self.targets_gpcd - q_ * self.mean_gpd[:, :, None])
        return (1 - t) * entropy + t * entropy_q - moved.square().sum((2, 3), dtype=torch.float64) / (2 * self.l2)


def _as(flat: Tensor, like: Tensor) -> Tensor:
    """The memory of a flat tensor with the shape and the layout of another."""
    return flat.as_strided(like.shape, like.stride())


def _like(condition: Tensor, values: Tensor) -> Tensor:
    """`condition` with as many dimensions as `values`."""
    return condition.view(*condition.shape, *(1,) * (values.dim() - condition.dim()))
