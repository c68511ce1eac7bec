"""The linear probe of the paper this tool serves: minibatches, a fixed number of epochs, nothing tuned.

"Beyond Interpretability" (arXiv 2410.21331) trains one linear layer for 50 epochs in batches of 256. On CIFAR its
public code has LARS: rate 0.4 with 10 epochs of linear warm-up and a half cosine after, weight decay 1e-4, trust
coefficient 0.02, clipped, the bias neither decayed nor scaled. On ImageNet-100: SGD at a constant rate of 1.5
(its steps are set to epochs it never reaches) without weight decay. Momentum is 0.9 in both, layers start as
`torch.nn.Linear` does, and an epoch's last, smaller batch is left out. There it is in half precision, here in
single.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.keys import draw_seed
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.problem import Choice, LinearProbes, Problem
from monoeval.probes.spec import Paper, PaperCached
from monoeval.progress import bar
from monoeval.training.optimisers import LARS
from monoeval.training.pretrain import warm_cosine

T = TypeVar("T")

TRUST = 0.02
WARM_UP = 0.2  # 10 of 50 epochs
WEIGHTS = 1 << 26
"""Weights that are trained at once: 256 MB, and as much of velocities and of gradients."""
CODES = 1 << 20
"""Codes that are gathered at once where problems differ in their rows: what stays in the processor's cache."""


def fit_paper(
    views: Sequence[TrainingCodes], problems: Sequence[Problem], n_classes: int, spec: PaperCached | Paper
) -> LinearProbes:
    """Train one linear layer a problem on codes [N, M]; epoch e reads `views[e % len(views)]`.

    The layers see the codes as the adapter gave them: `scale` is multiplied back, because an untuned rate means
    something at the paper's own scale only. Codes that are streamed are read batch by batch in the same order as
    held ones. All problems start from the same weights, and problems of as many rows share the order of their
    positions, so neither depends on what else is fitted; fewer rows than a batch are one batch. Validation rows
    are not used. A layer whose weights do not stay finite is all NaN, and its choice not `converged`.
    """
    first = views[0]
    weights_pcm = torch.empty(len(problems), n_classes, first.width, device=first.device)
    intercept_pc = torch.empty(len(problems), n_classes, device=first.device)
    stacks = list(_stacks(problems, n_classes, first.width, spec.batch))
    with bar("Training probes", spec.epochs * len(stacks), "epochs") as advance:
        for stack in stacks:
            training = _Training(first, [[problems[i] for i in members] for members in stack], n_classes, spec)
            for epoch in range(spec.epochs):
                training.epoch(epoch, views[epoch % len(views)])
                advance(1)
            members = torch.tensor(stack, device=first.device).flatten()
            weights_pcm[members] = training.weights_gpcm.flatten(0, 1)
            intercept_pc[members] = training.bias_gpc.flatten(0, 1)

    finite_p = weights_pcm.isfinite().flatten(1).all(1) & intercept_pc.isfinite().all(1)
    weights_pcm[~finite_p] = torch.nan
    intercept_pc[~finite_p] = torch.nan
    for intercept_c, problem in zip(intercept_pc, problems, strict=True):
        intercept_c[np.setdiff1d(np.arange(n_classes), problem.labels)] = -torch.inf
    return LinearProbes(weights_pcm, intercept_pc, [Choice(converged=finite) for finite in finite_p.tolist()])


def _stacks(problems: Sequence[Problem], n_classes: int, width: int, batch: int) -> Iterator[list[list[int]]]:
    """Problems [G, P] to be trained at once: P on each of G sets of as many rows."""
    layer = n_classes * max(width, batch)  # the weights of one, or its scores
    by_rows: dict[bytes, list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        by_rows[problem.rows.tobytes()].append(i)
    by_shape: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for members in by_rows.values():
        for some in _split(members, WEIGHTS // layer):
            by_shape[len(problems[some[0]].rows), len(some)].append(some)
    for (n, count), groups in by_shape.items():
        yield from _split(groups, min(WEIGHTS // (count * layer), CODES // (min(batch, n) * width)))


def _split(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), max(1, size)):
        yield items[start : start + max(1, size)]


class _Training:
    """Linear layers [G, P] in training: P on each of G sets of n rows."""

    def __init__(
        self, codes: TrainingCodes, problems: list[list[Problem]], n_classes: int, spec: PaperCached | Paper
    ) -> None:
        self.rows_gn = np.stack([group[0].rows for group in problems])
        labels = np.stack([np.stack([problem.labels for problem in group], axis=1) for group in problems])
        self.labels_gnp = torch.from_numpy(labels).to(codes.device)
        n_groups, n, count = self.labels_gnp.shape
        self.size = min(spec.batch, n)
        self.step, self.steps, self.spec = 0, n // self.size * spec.epochs, spec

        generator = torch.Generator().manual_seed(draw_seed("paper probe", "weights"))
        bound = codes.width**-0.5

        def initial(*shape: int) -> Tensor:
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator).to(codes.device)
            return drawn.expand(n_groups, count, *shape).contiguous()

        self.weights_gpcm, self.bias_gpc = initial(n_classes, codes.width), initial(n_classes)
        self.optimiser = LARS(
            [self.weights_gpcm, self.bias_gpc],
            trust=TRUST if spec.optimiser == "lars" else None,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            clip=True,
            layers=2,
        )

    def epoch(self, number: int, codes: TrainingCodes) -> None:
        """One pass over all rows but those left over after the last whole batch."""
        n_groups, n, _ = self.labels_gnp.shape
        generator = torch.Generator().manual_seed(draw_seed("paper probe", "order", number))
        order = torch.randperm(n, generator=generator)
        for positions in torch.split(order[: n - n % self.size], self.size):
            rows = self.rows_gn[:, positions.numpy()]
            codes_gbm = codes.dense(rows.ravel()).mul_(codes.scale).view(n_groups, self.size, -1)
            self._descend(codes_gbm, self.labels_gnp[:, positions.to(codes.device)])

    def _descend(self, codes_gbm: Tensor, labels_gbp: Tensor) -> None:
        """One step down the mean cross-entropy of a batch, whose gradient is (softmax - one-hot)ᵀ codes / B."""
        weights_gkm, bias_gk = self.weights_gpcm.flatten(1, 2), self.bias_gpc.flatten(1, 2)  # k: every p and c
        logits_gbk = torch.baddbmm(bias_gk[:, None], codes_gbm, weights_gkm.mT)
        error_gbpc = logits_gbk.view(*labels_gbp.shape, -1).softmax(-1)
        error_gbpc -= F.one_hot(labels_gbp, error_gbpc.shape[-1])
        error_gbk = error_gbpc.flatten(2).div_(self.size)
        gradients = torch.bmm(error_gbk.mT, codes_gbm), error_gbk.sum(1)
        share = warm_cosine(self.step, self.steps, WARM_UP) if self.spec.schedule == "cosine" else 1.0
        self.step += 1
        self.optimiser.step(
            [gradients[0].view_as(self.weights_gpcm), gradients[1].view_as(self.bias_gpc)], self.spec.rate * share
        )
