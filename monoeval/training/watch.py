"""How a pretraining goes, as its own training images tell: what a classifier reads, and how its latents are."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Codes
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import Identity
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.keys import draw_seed
from monoeval.metrics.latents import measure

ROWS = 2000


def watched_rows(n: int, seed: int) -> tuple[Ints, Ints]:
    """Rows that a classifier is fitted on, and as many others: at most `ROWS` of the `n` training images."""
    rows = np.random.default_rng(draw_seed("pretrain", "watch", seed)).permutation(n)[:ROWS]
    return np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])


@torch.no_grad()
def watch(
    features: Callable[[Ints], Tensor], fitted: Ints, scored: Ints, labels: Ints, n_classes: int
) -> dict[str, float]:
    """Measures of the features float32 [n, D] of rows, all of the training images.

    `probe` is the accuracy on the `scored` rows of the nearest class mean of the `fitted` rows; `consistency` and
    `consistency_chance` are the share of the most frequent class among the 20 rows that fire a latent most, and
    the same under permuted labels (`metrics.latents`), on the scored rows; `l0` is their active latents a row.
    """
    train, test = features(fitted), features(scored)
    classes = np.unique(labels[fitted])
    means = torch.stack([train[torch.from_numpy(labels[fitted] == c)].mean(0) for c in classes])
    guessed = classes[torch.cdist(test, means).argmin(1).numpy()]
    with tempfile.TemporaryDirectory() as place:
        shard = Path(place) / "features.npy"
        np.save(shard, test.numpy())
        adapter = Identity(NoSettings())
        adapter.width = test.shape[1]
        codes = Codes(FeatureSet("watched", (shard,)), adapter, torch.device("cpu"))
        latents = measure(codes, labels[scored], n_classes).summary()
    return {
        "probe": float((guessed == labels[scored]).mean()),
        "consistency": latents["top_consistency"],
        "consistency_chance": latents["top_consistency_chance"],
        "l0": latents["l0"],
    }
