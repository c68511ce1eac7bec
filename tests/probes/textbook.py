"""What probes minimise, written once more as textbooks do, in float64: one problem, no batches, no tricks."""

import numpy as np
from scipy.optimize import minimize


def clusters(n, width, n_classes, apart, seed=0):
    """Codes [n, width] around a random centre a class, their root-mean-square norm about 1, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    codes = rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width))
    codes -= codes.mean(0)
    return (codes / np.sqrt((codes**2).sum(1).mean())).astype(np.float32), labels


def topk_codes(n, width, k, n_classes, seed=0):
    """Values and indices [n, k] of codes whose active columns depend on the class; some places are unused."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    score = rng.normal(size=(n, width)) + 1.5 * rng.normal(size=(n_classes, width))[labels]
    indices = np.argsort(-score, 1)[:, :k]
    values = np.take_along_axis(score, indices, 1).clip(0)
    unused = rng.random((n, k)) < 0.2
    values[unused], indices[unused] = 0, 0
    return (values / 3).astype(np.float32), indices, labels


class Textbook:
    """Σ ω ℓ + (λ/2)·‖W‖² on codes [n, M] for weights [C, M] and intercepts [C] of the classes that have rows."""

    def __init__(self, codes, labels, weights, n_classes, smoothing=0.0, q=None, alpha=1.0, beta=0.0):
        self.codes = np.asarray(codes, dtype=float)
        self.omega = np.asarray(weights, dtype=float) / np.asarray(weights, dtype=float).sum()
        self.present = np.unique(labels[weights > 0])
        self.n_classes, self.q, self.alpha, self.beta = n_classes, q, alpha, beta
        self.hot = (labels[:, None] == self.present).astype(float)
        self.target = (1 - smoothing) * self.hot + smoothing / len(self.present)

    def probabilities(self, w, b):
        z = self.codes @ w[self.present].T + b[self.present]
        return np.exp(z - np.logaddexp.reduce(z, 1)[:, None])

    def losses(self, w, b):
        """ℓ [n]."""
        z = self.codes @ w[self.present].T + b[self.present]
        log_p = z - np.logaddexp.reduce(z, 1)[:, None]
        p = np.exp(log_p)
        if self.q is not None:
            return (1 - (p * self.hot).sum(1) ** self.q) / self.q
        reverse = -(p * np.where(self.hot > 0, 0.0, -4.0)).sum(1)
        return self.alpha * -(self.target * log_p).sum(1) + self.beta * reverse

    def loss(self, w, b):
        used = self.omega > 0
        return float((self.omega * np.where(used, self.losses(w, b), 0)).sum())

    def value(self, w, b, l2):
        return self.loss(w, b) + l2 / 2 * float((w[self.present] ** 2).sum())

    def gradient(self, w, b):
        """Of Σ ω ℓ, by W [C, M] and b [C]; zero for absent classes."""
        p = self.probabilities(w, b)
        own = (p * self.hot).sum(1, keepdims=True)
        if self.q is not None:
            by_z = own**self.q * (p - self.hot)
        else:
            by_z = self.alpha * (p - self.target) + 4 * self.beta * own * (p - self.hot)
        by_z *= self.omega[:, None]
        by_w, by_b = np.zeros_like(w), np.zeros_like(b)
        by_w[self.present], by_b[self.present] = by_z.T @ self.codes, by_z.sum(0)
        return by_w, by_b

    def minimise(self, l2, start=None):
        """scipy's stationary point (W, b), from weights zero or from `start`."""
        shape = (self.n_classes, self.codes.shape[1])
        w, b = (np.zeros(shape), np.zeros(self.n_classes)) if start is None else start

        def at(x):
            w, b = x[:w_size].reshape(shape), x[w_size:]
            by_w, by_b = self.gradient(w, b)
            return self.value(w, b, l2), np.r_[(by_w + l2 * w).ravel(), by_b]

        w_size = w.size
        options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30}
        b = np.where(np.isin(np.arange(self.n_classes), self.present), b, 0.0)
        found = minimize(at, np.r_[w.ravel(), b], jac=True, method="L-BFGS-B", options=options).x
        return found[:w_size].reshape(shape), found[w_size:]
