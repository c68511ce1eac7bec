"""Made-up codes that look like a backbone's: a power-law spectrum, overlapping classes, norm one on average."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from monoeval.data.images import Ints
from monoeval.data.label_noise import symmetric

Floats = NDArray[np.float32]

ROWS = 8192
"""Rows made at once: few, as the peak memory of what follows is measured."""


class Source:
    """Gaussian classes in `width` dimensions: variances fall as 1/j, those of the class means as 1/j².

    `share` of the variance lies between classes. At 512 × 100 and a share of 0.35 a tuned probe reads about 75 %.
    """

    def __init__(self, width: int, n_classes: int, share: float = 0.35, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, width, n_classes])
        axes, _ = np.linalg.qr(rng.standard_normal((width, width)))
        within, between = (_spectrum(width, power) for power in (1.0, 2.0))
        self.mean_cd = np.sqrt(share) * (rng.standard_normal((n_classes, width)) * between) @ axes.T
        self.mix_dd = (np.sqrt(1 - share) * within[:, None] * axes.T).astype(np.float32)

    def draw(self, n: int, stream: int) -> tuple[Floats, Ints]:
        """Codes float32 [n, D] and labels [n]; streams are independent of each other and of the class means."""
        rng = np.random.default_rng([stream, n, *self.mean_cd.shape])
        labels = rng.integers(0, len(self.mean_cd), n)
        codes = np.empty((n, len(self.mix_dd)), np.float32)
        for start in range(0, n, ROWS):
            rows = slice(start, min(start + ROWS, n))
            noise = rng.standard_normal((rows.stop - start, len(self.mix_dd)), dtype=np.float32)
            codes[rows] = noise @ self.mix_dd + self.mean_cd[labels[rows]]
        return codes, labels


def _spectrum(width: int, power: float) -> NDArray[np.float64]:
    deviations = np.arange(1, width + 1) ** (-power / 2)
    return deviations / np.linalg.norm(deviations)


def noisy(labels: Ints, n_classes: int, rates: Sequence[float], seeds: int = 1) -> torch.Tensor:
    """Labels int64 [len(rates) · seeds, n] with symmetric noise, a rate's seeds after each other."""
    drawn = [symmetric(labels, n_classes, rate, seed) for rate in rates for seed in range(seeds)]
    return torch.from_numpy(np.stack(drawn))


class Dictionary:
    """An untrained TopK encoder: the k largest positive products with `width` random directions."""

    def __init__(self, features_nd: Floats, width: int, k: int) -> None:
        directions = np.random.default_rng([2, width, k]).standard_normal((features_nd.shape[1], width))
        self.directions = torch.from_numpy((directions / np.linalg.norm(directions, axis=0)).astype(np.float32))
        self.k, self.scale = k, 1.0
        values, indices = self(features_nd)
        mean = np.bincount(indices.ravel(), values.ravel(), minlength=width) / len(values)
        self.scale = float(np.sqrt((values.astype(np.float64) ** 2).sum() / len(values) - (mean**2).sum()))

    def __call__(self, features_nd: Floats) -> tuple[Floats, Ints]:
        """Values float32 and indices int64 [n, k]; centred rows of what it was made with have norm one."""
        parts = []
        for rows in torch.from_numpy(features_nd).split(ROWS // 4):
            parts.append((rows @ self.directions).topk(self.k, dim=1, sorted=False))
        values = torch.cat([part.values for part in parts]).relu_() / self.scale
        return values.numpy(), torch.cat([part.indices for part in parts]).numpy()


def shards(folder: Path, source: Source, n: int, count: int) -> tuple[tuple[Path, ...], Ints]:
    """Write n rows to `count` fp16 shards, as the feature cache holds them; their paths, and all labels."""
    paths, labels = [], []
    for i, part in enumerate(np.array_split(np.arange(n), count)):
        codes, label = source.draw(len(part), stream=10 + i)
        paths.append(folder / f"{i}.npy")
        np.save(paths[-1], codes.astype(np.float16))
        labels.append(label)
    return tuple(paths), np.concatenate(labels)
