"""Independent component analysis: the linear, signed control for features that each stand for one thing."""

import logging
from typing import ClassVar, Self

import torch
from torch import Tensor

from monoeval import progress
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import ICASettings
from monoeval.adapters.simple import PCA
from monoeval.keys import draw_seed

MOST_ROWS = 50_000
"""The rotation is found on this many rows at most, drawn by the seed; whitening sees all."""

TOLERANCE = 1e-4

log = logging.getLogger("monoeval")


class ICA(PCA):
    """Whitened principal components, rotated to be as independent as they can be (FastICA).

    The codes are signed and dense, each with variance one. A component's sign is arbitrary, so it points to where
    its tail is longer (positive skewness). The measures `change` and `converged` say how far the last step turned
    a component and whether that was less than 1e-4.
    """

    method: ClassVar[str] = "ica"
    settings: ICASettings
    back: Tensor  # [M, D]

    def __init__(self, settings: ICASettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        whitening = PCA(self.settings).fit(rows, seed=seed)
        draws = torch.Generator().manual_seed(draw_seed("ica", seed))
        used = torch.randperm(len(rows), generator=draws)[:MOST_ROWS]
        white_nm = torch.cat([whitening.encode(rows.batch(part)).float() for part in torch.split(used, 4096)])
        start = torch.randn(whitening.width, whitening.width, generator=draws).to(rows.device)
        rotation, steps, change = fast_ica(white_nm, start, self.settings.max_steps)
        skewed = (white_nm @ rotation.T).pow(3).mean(dim=0)
        rotation = torch.where(skewed < 0, -1.0, 1.0)[:, None] * rotation
        self.measures = {
            **whitening.measures,
            "rows": len(used),
            "steps": steps,
            "change": change,
            "converged": float(change < TOLERANCE),
        }
        if change >= TOLERANCE:
            log.warning(
                "ica did not converge: the last of %d steps turned a component by %.1e, so set max_steps higher.",
                steps, change,
            )  # fmt: skip
        return self.restore({
            "mean": whitening.mean,
            "weight": (whitening.weight @ rotation.T).contiguous(),
            "back": rotation @ whitening.directions,
        })  # fmt: skip

    @property
    def directions(self) -> Tensor:
        return self.back

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "back": self.back}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.back = state["back"]
        return super().restore(state)


def fast_ica(white_nm: Tensor, start_mm: Tensor, max_steps: int) -> tuple[Tensor, int, float]:
    """An orthogonal W [M, M] whose rows give independent components of white rows, steps taken, and last change.

    Symmetric FastICA with the contrast log cosh (Hyvärinen and Oja 2000, Neural Networks 13, sections 6.1, 6.2):
    each row w ← E[x tanh(wᵀx)] − E[1 − tanh²(wᵀx)] w, then W ← (W Wᵀ)^(−1/2) W, from `start_mm` [M, M] until the
    change max_j |1 − |w_jᵀ w_j'|| is below 1e-4.
    """
    rotation, change, step = orthogonal(start_mm), float("inf"), 0
    with progress.bar("fitting ica", max_steps, "steps") as advance:
        while step < max_steps and change >= TOLERANCE:
            bent_nm = (white_nm @ rotation.T).tanh()
            slope = 1 - bent_nm.square().mean(dim=0)
            moved = orthogonal(bent_nm.T @ white_nm / len(white_nm) - slope[:, None] * rotation)
            change = float((1 - (moved * rotation).sum(dim=1).abs()).abs().max())
            rotation, step = moved, step + 1
            advance(1)
    return rotation, step, change


def orthogonal(matrix: Tensor) -> Tensor:
    """(W Wᵀ)^(−1/2) W, the orthogonal matrix nearest to W."""
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest
