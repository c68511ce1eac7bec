"""What probes in closed form share: problems on the same rows, their held-out rows, the scale of their scores.

Folds do not depend on labels here, unlike those of the logistic probe: problems that differ only in labels, as
noise rates do, then share every decomposition.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import SparseRows
from monoeval.data.images import Ints
from monoeval.data.splits import folds
from monoeval.keys import draw_seed
from monoeval.probes.batch import MANY_ROWS
from monoeval.probes.codes import CHUNK_ROWS, TrainingCodes
from monoeval.probes.problem import Problem

JUDGED = 10_000
"""Held-out rows that are scored at most: their scores are kept, and more rows would hardly move one number."""
SCORES = 2**24
"""Numbers of scores of held-out rows that are kept at once (64 MB)."""
IN_CACHE = 2**17
"""Scores whose softmax stays in the cache between the steps of a pass."""


@dataclass(frozen=True)
class SharedRows:
    """Problems that share their rows, validation rows and groups, and differ in labels."""

    members: list[int]
    pool: Ints  # [n + v] training rows, then validation rows where they are given
    n: int
    labels: list[Tensor]  # [n + v] int64 of each problem
    judged_by: list[Tensor]  # [n + v] int64, labels that left out rows are scored on
    groups: Ints | None  # [n]

    @property
    def validated(self) -> bool:
        """Whether validation rows are given; probes are then fitted on the training rows alone."""
        return len(self.pool) > self.n

    def folds(self, n_folds: int) -> tuple[Ints, list[Ints]]:
        """The fold [n + v] of each row and, for each of F fits, the positions in `pool` that it scores.

        Fit f leaves out fold f. Validation rows are fold 0 of a single fit; so is a fifth of the training rows
        where these are many.
        """
        if self.validated:
            fold, n_fits = (np.arange(len(self.pool)) < self.n).astype(np.int64), 1
        else:
            n_fits = 1 if self.n >= MANY_ROWS else min(n_folds, self.n)
            fold = folds(np.zeros(self.n, dtype=np.int64), 5 if n_fits == 1 else n_fits, self.groups)
            fold = np.minimum(fold, n_fits)
        return fold, [at_most_judged(np.flatnonzero(fold == f)) for f in range(n_fits)]

    def turns(self, n_scored: int, n_classes: int) -> Iterator[list[int]]:
        """Positions in `members` of problems whose scores are kept at once."""
        size = max(1, SCORES // (n_scored * n_classes))
        for start in range(0, len(self.members), size):
            yield list(range(start, min(start + size, len(self.members))))

    def labels_of(self, positions: Ints, problems: Sequence[int]) -> Tensor:
        """Labels int64 [v, p] that some problems are judged by."""
        index = torch.from_numpy(positions).to(self.labels[0].device)
        return torch.stack([self.judged_by[p][index] for p in problems], 1)


def shared_rows(problems: Sequence[Problem], device: torch.device) -> list[SharedRows]:
    """Group the problems by what they share."""
    alike: dict[tuple[bytes, bytes, bytes], list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        parts = (problem.rows, problem.validation_rows, problem.groups)
        rows, validation, groups = (b"" if part is None else part.tobytes() for part in parts)
        alike[rows, validation, groups].append(i)
    return [_shared(problems, members, device) for members in alike.values()]


def _shared(problems: Sequence[Problem], members: list[int], device: torch.device) -> SharedRows:
    first = problems[members[0]]
    labels, judged_by = [], []
    for problem in (problems[i] for i in members):
        held = problem.labels[:0] if problem.validation_labels is None else problem.validation_labels
        labels.append(torch.from_numpy(np.concatenate([problem.labels, held]).astype(np.int64)).to(device))
        other = problem.selection_labels
        judged_by.append(
            labels[-1]
            if other is None
            else torch.from_numpy(np.concatenate([other, held]).astype(np.int64)).to(device)
        )
    held_rows = first.rows[:0] if first.validation_rows is None else first.validation_rows
    pool = np.concatenate([first.rows, held_rows])
    return SharedRows(members, pool, len(first.rows), labels, judged_by, first.groups)


def at_most_judged(positions: Ints) -> Ints:
    """A random `JUDGED` of the positions, in order, where there are more."""
    if len(positions) <= JUDGED:
        return positions
    rng = np.random.default_rng(draw_seed("judged", len(positions)))
    return np.sort(rng.choice(positions, JUDGED, replace=False))


def take(codes: TrainingCodes, rows: Ints) -> Tensor | SparseRows:
    """Scaled codes of `rows`, sparse where sparse codes are held."""
    if not isinstance(codes.held, SparseRows):
        return codes.dense(rows)
    index = torch.from_numpy(rows).to(codes.device)
    return SparseRows(codes.held.values[index] / codes.scale, codes.held.indices[index], codes.width)


def read(codes: TrainingCodes, rows: Ints) -> Iterator[tuple[slice, Tensor | SparseRows]]:
    """Scaled codes of `rows`, a chunk at a time, with their positions in `rows`."""
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, len(rows)))
        yield part, take(codes, rows[part])


def dense(chunk: Tensor | SparseRows) -> Tensor:
    """A chunk as float32 [n, M]."""
    return chunk.dense() if isinstance(chunk, SparseRows) else chunk


def add_to_slots(sums_sm: Tensor, chunk: Tensor | SparseRows, slots_n: Tensor) -> None:
    """Add each row of the chunk to the row of `sums_sm` (float64, contiguous) that its slot names."""
    if isinstance(chunk, SparseRows):
        flat = slots_n[:, None] * chunk.width + chunk.indices
        sums_sm.view(-1).index_add_(0, flat.flatten(), chunk.values.flatten().to(sums_sm.dtype))
    else:
        sums_sm.index_add_(0, slots_n, chunk.to(sums_sm.dtype))


@dataclass(frozen=True)
class ClassSums:
    """Sums of codes by fold, problem and class, in float64."""

    sums_fpcm: Tensor
    counts_fpc: Tensor

    @classmethod
    def empty(cls, shared: SharedRows, fold: Ints, n_classes: int, like: TrainingCodes) -> "ClassSums":
        n_parts, n_problems = int(fold.max()) + 1, len(shared.members)
        part = torch.from_numpy(fold).to(like.device) * n_classes
        counts = [torch.bincount(part + y, minlength=n_parts * n_classes) for y in shared.labels]
        counts_fpc = torch.stack(counts).view(n_problems, n_parts, n_classes).transpose(0, 1).double()
        sums = torch.zeros(*counts_fpc.shape, like.width, dtype=torch.float64, device=like.device)
        return cls(sums, counts_fpc)

    def add(self, chunk: Tensor | SparseRows, fold_n: Tensor, labels: Sequence[Tensor]) -> None:
        """Add rows with their folds and, for each problem, their labels [n]."""
        _, n_problems, n_classes, width = self.sums_fpcm.shape
        if isinstance(chunk, Tensor):
            chunk = chunk.double()
        for p, y in enumerate(labels):
            add_to_slots(self.sums_fpcm.view(-1, width), chunk, (fold_n * n_problems + p) * n_classes + y)

    def over(self, problems: Sequence[int] | slice, without: int | None) -> tuple[Tensor, Tensor]:
        """Sums [P, C, M] and counts [P, C] over all folds, or all but one; copies."""
        kept = [f for f in range(len(self.sums_fpcm)) if f != without]
        sums = self.sums_fpcm[kept[0]][problems].clone()
        for f in kept[1:]:
            sums += self.sums_fpcm[f][problems]
        return sums, self.counts_fpc[kept][:, problems].sum(0)


@dataclass(frozen=True)
class Judged:
    """Scores that one fit gives to rows that it left out."""

    scores_vpc: Tensor  # float32, finite
    labels_vp: Tensor  # int64
    seen_pc: Tensor  # bool: classes with a training row of that fit; the others cannot be predicted


@dataclass(frozen=True)
class Calibration:
    scale_p: Tensor
    """float64: what scores are multiplied by to be logits."""
    losses_vp: Tensor
    """float64: log-loss of each row, NaN where the fit had not seen its class."""

    def mean_loss_p(self) -> Tensor:
        """Mean log-loss; NaN where no row could be judged."""
        return self.losses_vp.nanmean(0)


def calibrate(judged: Sequence[Judged], start_p: Tensor | None = None) -> Calibration:
    """One inverse temperature a problem, by log-loss on held-out scores (Guo et al. 2017).

    It minimises, convex in the scale, the mean log-loss towards (1 − ε)·one-hot + ε·uniform over the seen classes,
    ε = 1/(rows + 1), as if one more row could be of any class (after Platt 1999): so it stays finite where every
    row is classified correctly. It is 1 where no row can be judged. Newton's method within a bracket, from
    `start_p`, until a step changes no scale by more than a thousandth; what is left is of the order of its square.
    """
    rows = torch.cat([_judgeable(j) for j in judged]).sum(0).double()
    target, spread = torch.zeros_like(rows), torch.zeros_like(rows)
    for j in judged:
        use, seen = _judgeable(j), j.seen_pc.float()
        mean = torch.einsum("vpc,pc->vp", j.scores_vpc, seen) / seen.sum(1)
        own = j.scores_vpc.gather(2, j.labels_vp[..., None])[..., 0]
        target += torch.where(use, (rows * own + mean) / (rows + 1), 0.0).sum(0, dtype=torch.float64)
        spread += torch.where(use, (own - mean).square(), 0.0).sum(0, dtype=torch.float64)
    known = (rows > 0) & (spread > 0)
    unit = torch.where(known, (rows / spread).sqrt(), 1.0)
    low, high = 1e-4 * unit, torch.full_like(unit, torch.inf)
    scale = unit if start_p is None else torch.maximum(start_p, low)
    for _ in range(60):
        mean, variance = _moments(judged, scale)
        slope = mean - target
        low, high = torch.where(slope < 0, scale, low), torch.where(slope > 0, scale, high)
        step = torch.maximum(torch.minimum(scale - slope / variance.clamp(min=1e-300), 8 * scale), scale / 8)
        inside = (step > low) & (step < high)
        step = torch.where(inside, step, torch.where(high.isinf(), 8 * scale, (low * high).sqrt()))
        step = torch.where(known, step, scale)
        moved = (step / scale).log().abs().max()
        scale = step
        if float(moved) < 1e-3:
            break
    scale = torch.where(known, scale, 1.0)
    return Calibration(scale, torch.cat([_losses(j, scale) for j in judged]))


def _judgeable(judged: Judged) -> Tensor:
    """Whether the fit has seen the class of a row [v, P]."""
    problem = torch.arange(judged.labels_vp.shape[1], device=judged.labels_vp.device)
    return judged.seen_pc[problem, judged.labels_vp]


def _blocks(judged: Judged, scale_p: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows at a time, with their scores and logits."""
    offset = torch.zeros_like(judged.scores_vpc[:1]).masked_fill_(~judged.seen_pc, -torch.inf)
    factor = scale_p.to(offset.dtype)[:, None]
    size = max(1, IN_CACHE // offset.numel())
    for start in range(0, len(judged.scores_vpc), size):
        rows = slice(start, start + size)
        scores = judged.scores_vpc[rows]
        yield rows, scores, torch.addcmul(offset, scores, factor)


def _moments(judged: Sequence[Judged], scale_p: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [P] over judgeable rows of the mean and the variance of a row's scores under its softmax."""
    means, variances = torch.zeros_like(scale_p), torch.zeros_like(scale_p)
    for j in judged:
        use = _judgeable(j)
        for rows, scores, logits in _blocks(j, scale_p):
            chance = torch.softmax(logits, 2)
            mean = (chance * scores).sum(2)
            variance = (scores - mean[..., None]).square_().mul_(chance).sum(2)
            means += torch.where(use[rows], mean, 0.0).sum(0, dtype=torch.float64)
            variances += torch.where(use[rows], variance, 0.0).sum(0, dtype=torch.float64)
    return means, variances


def _losses(judged: Judged, scale_p: Tensor) -> Tensor:
    parts = [
        logits.logsumexp(2) - logits.gather(2, judged.labels_vp[rows][..., None])[..., 0]
        for rows, _, logits in _blocks(judged, scale_p)
    ]
    return torch.cat(parts).double().masked_fill_(~_judgeable(judged), torch.nan)
