"""Codes made by hand: the features are the codes, given to the measures dense, sparse, or in turns."""

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.backbones.features import FeatureSet


def held(array: np.ndarray) -> FeatureSet:
    """An array [N, D] as a feature set without files."""
    features = FeatureSet("made", ())
    features.__dict__["_arrays"] = [np.asarray(array, dtype=np.float32)]
    return features


class Given(Adapter):
    """Codes are the features: `dense`, `sparse` (in a random order, with padding), or `mixed`, in turns."""

    method = "given"

    def __init__(self, kind: str, width: int, shrink: float | None = None) -> None:
        self.kind, self.width, self.shrink, self.calls = kind, width, shrink, 0

    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        self.calls += 1
        dense = self.kind == "dense" or (self.kind == "mixed" and self.calls % 2 == 0)
        return features_nd if dense else sparse(features_nd)

    def decode(self, codes: Tensor | SparseRows) -> Tensor | None:
        if self.shrink is None:
            return None
        return (codes.dense() if isinstance(codes, SparseRows) else codes) * self.shrink

    def fit(self, rows, *, seed):
        raise NotImplementedError

    state = restore = fit


def sparse(codes_nm: Tensor) -> SparseRows:
    """The non-zero entries in a random order, with padding between them, as wide as the fullest row."""
    k = int((codes_nm != 0).sum(1).max()) if len(codes_nm) else 0
    indices = torch.stack([row.argsort(descending=True)[:k] for row in (codes_nm != 0).int()])
    order = torch.randperm(k)
    indices = indices[:, order]
    return SparseRows(codes_nm.gather(1, indices), indices, codes_nm.shape[1])


def codes_of(array: np.ndarray, kind: str = "dense", shrink: float | None = None) -> Codes:
    array = np.asarray(array, dtype=np.float32)
    return Codes(held(array), Given(kind, array.shape[1], shrink), torch.device("cpu"))


def planted(rows: int = 120, width: int = 30, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse codes [N, M], some of whose latents follow the labels [N]; the last latent is dead."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    codes = rng.gamma(2.0, size=(rows, width)) * (rng.random((rows, width)) < rng.uniform(0.05, 0.6, width))
    follows = np.arange(width) % 2 == 0
    codes *= np.where(follows & (labels[:, None] != np.arange(width) % classes), rng.random((rows, 1)) < 0.2, 1)
    codes[:, -1] = 0
    return codes.astype(np.float32), labels
