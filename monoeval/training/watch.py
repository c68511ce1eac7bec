"""How a pretraining goes: what classifiers read from its features, and how its latents are."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Codes
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import Identity
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics.latents import measure
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.problem import Problem
from monoeval.probes.ridge import fit_ridge
from monoeval.probes.spec import Ridge

ROWS = 2000


def watched_rows(n: int, name: str, seed: int) -> Ints:
    """At most `ROWS` of `n` rows, in an order that `name` and `seed` draw."""
    return np.random.default_rng(draw_seed("pretrain", name, seed)).permutation(n)[:ROWS]


@torch.no_grad()
def watch(
    fitted: Tensor, fitted_labels: Ints, scored: Tensor, scored_labels: Ints, n_classes: int
) -> dict[str, float]:
    """Measures of the features float32 [N, D] that classifiers are fitted on, and of those they are scored on.

    `linear` is the accuracy of the ridge probe as it is by default, NaN where all features are alike, and
    `nearest_mean` that of the nearest class mean. `consistency` and `consistency_chance` are the share of the most
    frequent class among the 20 scored rows that fire a latent most, and the same under permuted labels
    (`metrics.latents`); `l0` is their active latents a row.
    """
    classes = np.unique(fitted_labels)
    means = torch.stack([fitted[torch.from_numpy(fitted_labels == c)].mean(0) for c in classes])
    guessed = classes[torch.cdist(scored, means).argmin(1).numpy()]
    with tempfile.TemporaryDirectory() as place:
        latents = measure(_codes(scored, Path(place) / "scored.npy"), scored_labels, n_classes).summary()
        try:
            codes = TrainingCodes.of(_codes(fitted, Path(place) / "fitted.npy"))
        except MonoevalError:  # features that have collapsed have no scale
            linear = float("nan")
        else:
            probe = fit_ridge(codes, [Problem(np.arange(len(fitted)), fitted_labels)], n_classes, Ridge())
            chosen = probe.logits(scored, [0])[:, 0].argmax(1).numpy()
            linear = float((chosen == scored_labels).mean())
    return {
        "linear": linear,
        "nearest_mean": float((guessed == scored_labels).mean()),
        "consistency": latents["top_consistency"],
        "consistency_chance": latents["top_consistency_chance"],
        "l0": latents["l0"],
    }


def _codes(features: Tensor, shard: Path) -> Codes:
    """Features [n, D] as codes of themselves, by way of a file."""
    np.save(shard, features.numpy())
    adapter = Identity(NoSettings())
    adapter.width = features.shape[1]
    return Codes(FeatureSet(shard.stem, (shard,)), adapter, torch.device("cpu"))
