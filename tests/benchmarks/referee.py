"""A float64 referee for logistic probes that shares no code with the solver it judges.

A problem on rows [N, M] is f(W, b) = mean CE + (λ/2)·‖W‖², b free. With b minimised for the given W, the gradient
of b is zero and the probabilities are a feasible point of the dual, whose value is f(W, b) - ‖∇_W f‖²/2λ: a lower
bound of the optimum, however far away W is (Boyd and Vandenberghe, Convex Optimization, section 5.5).
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.optimize import minimize

from monoeval.data.images import Ints

Doubles = NDArray[np.float64]
Rows = NDArray[np.float32] | scipy.sparse.csr_matrix

CONVERGED = 1e-6
"""Proven relative gap of what counts as the optimum: a hundredth of what is asked of those judged by it."""


@dataclass(frozen=True)
class Fit:
    """A linear classifier on the rows as they came."""

    weights_cm: NDArray[np.floating]
    intercept_c: NDArray[np.floating]

    def accuracy(self, rows: Rows, labels: Ints) -> float:
        """Percent of rows that it classifies rightly."""
        scores = rows @ self.weights_cm.T.astype(np.float32) + self.intercept_c
        return 100 * float((scores.argmax(1) == labels).mean())


class Referee:
    """Judges problems that share rows float32 [N, M], dense or CSR. Dense rows are held in their eigenbasis."""

    def __init__(self, rows: Rows) -> None:
        self.mean: Doubles | float = 0.0
        self.axes: Doubles | None = None
        self.rows = rows.astype(np.float64)
        if isinstance(rows, np.ndarray):
            self.mean = self.rows.mean(0)
            self.rows -= self.mean
            variances, self.axes = np.linalg.eigh(self.rows.T @ self.rows / len(rows))
            self.rows = self.rows @ self.axes
        else:
            variances = np.asarray(self.rows.multiply(self.rows).mean(0)).ravel()
        self.variances = variances.clip(min=0.0)

    def bounds(self, fit: Fit, labels: Ints, l2: float) -> tuple[float, float]:
        """f of `fit`, and a proven lower bound of the optimum."""
        weights, intercept = self._enter(fit)
        logits = self.rows @ weights.T
        loss, _ = _loss(logits + intercept, labels)
        penalty = l2 / 2 * float((weights**2).sum())
        best_loss, residual = _loss(logits + _best_intercept(logits, intercept, labels), labels)
        gradient = (self.rows.T @ residual).T + l2 * weights
        return loss + penalty, best_loss + penalty - float((gradient**2).sum()) / (2 * l2)

    def optimum(self, labels: Ints, l2: float, start: Fit) -> Fit:
        """The optimum, from `start`, by L-BFGS with a diagonal change of variables.

        Raises RuntimeError where it is not proven to CONVERGED.
        """
        weights, intercept = self._enter(start)
        shape = weights.shape
        chance = np.exp(_log_chance(self.rows @ weights.T + intercept))
        spread = (chance * (1 - chance)).mean(0)[:, None].clip(min=1e-12)
        units = np.hstack([np.sqrt(spread * self.variances + l2), np.sqrt(spread)])

        def objective(flat: Doubles) -> tuple[float, Doubles]:
            point = flat.reshape(units.shape) / units
            loss, residual = _loss(self.rows @ point[:, :-1].T + point[:, -1], labels)
            gradient = np.hstack([(self.rows.T @ residual).T + l2 * point[:, :-1], residual.sum(0)[:, None]])
            return loss + l2 / 2 * float((point[:, :-1] ** 2).sum()), (gradient / units).ravel()

        point = np.hstack([weights, intercept[:, None]])
        # curvatures are near one in these units, so half the squared gradient estimates what is left to gain; it
        # is held against the penalty, not f: where the L2 is large, a percent of the weights hardly shows in f
        tolerance = np.sqrt(2e-6 * l2 / 2 * float((weights**2).sum()) / point.size)
        for _ in range(4):
            options = {"maxcor": 20, "maxiter": 5000, "maxfun": 10000, "ftol": 0.0, "gtol": tolerance}
            end = minimize(objective, (point * units).ravel(), jac=True, method="L-BFGS-B", options=options)
            point = end.x.reshape(units.shape) / units
            fit = self._leave(point[:, : shape[1]], point[:, -1])
            value, lower = self.bounds(fit, labels, l2)
            if value - lower <= CONVERGED * value:
                return fit
            tolerance /= 10
        raise RuntimeError(
            f"At L2 {l2:g} the reference is only proven within {1 - lower / value:.1e} of its optimum."
        )

    def _enter(self, fit: Fit) -> tuple[Doubles, Doubles]:
        weights, intercept = fit.weights_cm.astype(np.float64), fit.intercept_c.astype(np.float64)
        if self.axes is None:
            return weights, intercept
        return weights @ self.axes, intercept + weights @ self.mean

    def _leave(self, weights: Doubles, intercept: Doubles) -> Fit:
        if self.axes is None:
            return Fit(weights, intercept)
        weights = weights @ self.axes.T
        return Fit(weights, intercept - weights @ self.mean)


@dataclass(frozen=True)
class Verdict:
    """How good a classifier is, by the referee: relative differences of f, and points of test accuracy."""

    gap: float  # proven: f above the lower bound
    above_optimum: float
    above_peer: float
    points: float  # of accuracy away from the optimum's, whichever way


class Judge:
    """One problem with its optimum and a peer's classifier."""

    def __init__(
        self, referee: Referee, labels: Ints, l2: float, start: Fit, peer: Fit, test: tuple[Rows, Ints]
    ) -> None:
        self.referee, self.labels, self.l2, self.test = referee, labels, l2, test
        optimum = referee.optimum(labels, l2, start)
        self.value, _ = referee.bounds(optimum, labels, l2)
        self.accuracy = optimum.accuracy(*test)
        self.peer_value, _ = referee.bounds(peer, labels, l2)

    def __call__(self, fit: Fit) -> Verdict:
        value, lower = self.referee.bounds(fit, self.labels, self.l2)
        return Verdict(
            (value - lower) / value,
            (value - self.value) / self.value,
            (value - self.peer_value) / self.peer_value,
            abs(fit.accuracy(*self.test) - self.accuracy),
        )


def _log_chance(logits: Doubles) -> Doubles:
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _loss(logits: Doubles, labels: Ints) -> tuple[float, Doubles]:
    """Mean cross-entropy, and its gradient by the logits."""
    chance = _log_chance(logits)
    here = np.arange(len(labels)), labels
    loss = -float(chance[here].mean())
    np.exp(chance, out=chance)
    chance[here] -= 1.0
    return loss, chance / len(labels)


def _best_intercept(logits: Doubles, intercept: Doubles, labels: Ints) -> Doubles:
    """Newton's method for b given W, until predicted and true class frequencies are the same to rounding."""
    n, n_classes = logits.shape
    frequency = np.bincount(labels, minlength=n_classes) / n
    for _ in range(50):
        chance = np.exp(_log_chance(logits + intercept))
        missing = frequency - chance.mean(0)
        if np.abs(missing).max() < 1e-13:
            return intercept
        # a constant over all classes changes nothing: the ones make the curvature invertible
        curvature = np.diag(chance.mean(0)) - chance.T @ chance / n + 1 / n_classes**2
        step = np.linalg.solve(curvature, missing)
        intercept = intercept + step / max(1.0, float(np.abs(step).max()))
    return np.full_like(intercept, np.nan)
