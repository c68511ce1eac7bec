"""How a pretraining goes: what classifiers read from its features, and how its latents are."""

import math
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Codes
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import Identity
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import ImageSet, Ints
from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics.latents import measure
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.problem import Problem
from monoeval.probes.ridge import fit_ridge
from monoeval.probes.spec import Ridge
from monoeval.training.squares import Squares, squares_of

if TYPE_CHECKING:
    from monoeval.training.pretrain import _Training  # which says how it goes through this

ROWS = 2000


def watched_rows(n: int, name: str, seed: int) -> Ints:
    """At most `ROWS` of `n` rows, in an order that `name` and `seed` draw."""
    return np.random.default_rng(draw_seed("pretrain", name, seed)).permutation(n)[:ROWS]


class Watch:
    """Says how a training goes: what its features tell of some of its images, and of some that it does not see."""

    def __init__(self, training: "_Training", unseen: ImageSet | None) -> None:
        self.training, self.unseen = training, unseen
        self.rows = watched_rows(len(training.images), "watch", training.seed)

    @cached_property
    def scored(self) -> tuple[Squares, Ints, Ints]:
        """The squares, rows and labels that classifiers are scored on; decoded when they are first asked for."""
        training, unseen = self.training, self.unseen
        if not unseen:
            rows = np.sort(self.rows[len(self.rows) // 2 :])
            return training.squares, rows, training.images.labels[rows]
        unseen = unseen.take(np.sort(watched_rows(len(unseen), "watch unseen", training.seed)))
        squares = squares_of(unseen, training.spec.image_size, training.device)
        return squares, np.arange(len(unseen)), unseen.labels

    def said(self) -> str:
        """A line about the last epoch. Leaves the network in evaluation mode."""
        training, n_classes = self.training, len(self.training.images.class_names)
        said = f"epoch {training.epoch} of {training.spec.epochs}: loss {training.losses[-1]:.3f}"
        rows = np.sort(self.rows if self.unseen else self.rows[: len(self.rows) // 2])
        fitted = training.squares, rows, training.images.labels[rows]
        if len(np.unique(fitted[2])) < 2:
            return said
        training.network.eval()
        (seen, seen_labels), (scored, labels) = (
            (torch.cat([part.cpu() for part in training.features(squares, torch.from_numpy(rows))]), of)
            for squares, rows, of in (fitted, self.scored)
        )
        if not bool(seen.isfinite().all() and scored.isfinite().all()):
            return f"{said}, features not finite"
        found = watch(seen, seen_labels, scored, labels, n_classes)
        if math.isfinite(found["linear"]):
            said += f", linear probe {100 * found['linear']:.1f} %"
        which = (
            f"on {len(scored):,} images of {self.unseen.name} that are not trained on"
            if self.unseen
            else f"on {len(scored):,} training images that these do not see"
        )
        said += f", nearest class mean {100 * found['nearest_mean']:.1f} % ({which}), "
        if math.isfinite(found["consistency"]):  # no latent may fire on 20 of few rows
            said += f"top-20 consistency {found['consistency']:.2f} (chance {found['consistency_chance']:.2f}), "
        return said + f"{found['l0']:.0f} of {training.spec.width} latents active"


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
