"""Which problems are solved together: those that share rows form a group, groups of like size a padded batch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monoeval.data.images import Ints
from monoeval.data.splits import folds
from monoeval.probes.logistic import Eigenbasis
from monoeval.probes.problem import Problem

MANY_ROWS = 5000
"""From here on one stratified fifth is held out: its standard error is small, and folds would cost five fits."""
GATHERED = 2**26
"""Numbers of padded codes that one batch of small problems may copy (256 MB)."""
LOGITS = 2**24
"""Numbers of logits held at once when rows are scored."""


@dataclass(frozen=True)
class Batch:
    """P problems on each of G groups of n rows; `members` are their indices, group after group."""

    members: list[int]
    clusters: list[Ints | None]  # [v] which scored rows belong together, where a problem has groups
    basis: Eigenbasis
    labels: Tensor  # [G, P, n] int64
    fold: (
        Tensor  # [G, P, n] the fit that leaves a row out; `n_fits` where none does, -1 for rows that are not used
    )
    n_fits: int
    judged: Tensor  # [G, v, M] codes of the rows that are scored: the training rows, or validation rows
    judged_labels: Tensor  # [G, P, v] int64
    judge: Tensor  # [G, P, v] the fit that scores a row; none where it is outside 0 … n_fits - 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.shape[0], self.labels.shape[1]

    def by_group(self, values: Tensor) -> Tensor:
        """Values [G·P, ...] as [G, P, ...]."""
        return values.view(*self.shape, *values.shape[1:])

    def row_weights(self) -> Tensor:
        """Weights [G, P, n] of fits on all rows."""
        return (self.fold >= 0).float()

    def fold_weights(self, index: Tensor) -> Tensor:
        """Weights [G', P'·F, n] of the fits that leave one fold out, for the part `index` of the batch."""
        fold = self.part(self.fold, index)[:, :, None]
        fits = torch.arange(self.n_fits, device=fold.device)[:, None]
        return ((fold >= 0) & (fold != fits)).float().flatten(1, 2)

    @property
    def along(self) -> int:
        """The axis that parts of the batch are taken along: groups, or the problems of a single group."""
        return 0 if self.shape[0] > 1 else 1

    def part(self, values: Tensor, index: Tensor) -> Tensor:
        """Some groups (or problems) of `values` [G, P, ...]."""
        return values.index_select(self.along, index)

    def part_of_basis(self, index: Tensor) -> Eigenbasis:
        """The eigenbasis for `part`s."""
        return self.basis.take(index) if self.along == 0 else self.basis

    def losses(self, weights_gpcm: Tensor, intercept_gpc: Tensor, index: Tensor) -> Tensor:
        """Log-loss float32 [G', P', v] of each scored row by the fit that judges it, NaN where none does.

        The classifiers are those of the P'·F fits. It is infinite where that fit had no row of the class.
        """
        codes = self.judged.index_select(0, index) if self.along == 0 else self.judged
        labels, judge = self.part(self.judged_labels, index), self.part(self.judge, index)
        n_groups, n_problems, n = labels.shape
        n_fits, n_classes = self.n_fits, intercept_gpc.shape[2]
        flat, offset = weights_gpcm.flatten(1, 2), intercept_gpc.flatten(1, 2)[..., None]
        out = []
        size = max(1, LOGITS // flat[..., 0].numel())
        for start in range(0, n, size):
            rows = slice(start, start + size)
            logit = (torch.bmm(flat, codes[:, rows].mT) + offset).view(n_groups, n_problems, n_fits, n_classes, -1)
            fit = judge[..., rows].clamp(0, n_fits - 1)[:, :, None, None]
            own = logit.gather(2, fit.expand(-1, -1, 1, n_classes, -1))[:, :, 0]
            out.append(own.logsumexp(2) - own.gather(2, labels[:, :, None, rows])[:, :, 0])
        judged = (judge >= 0) & (judge < n_fits)
        return torch.cat(out, 2).masked_fill_(~judged, torch.nan)


def batches(codes_nm: Tensor, problems: Sequence[Problem], n_folds: int) -> Iterator[Batch]:
    """Yield `problems` on codes [N, M] in few batches."""
    n, width = codes_nm.shape
    whole: dict[int, list[int]] = defaultdict(list)
    shared: dict[tuple[int, bytes, bytes], list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        size, validation = len(problem.rows), problem.validation_rows
        given = b"" if validation is None else validation.tobytes()
        n_fits = 1 if given or size >= MANY_ROWS else min(n_folds, size)
        if not given and size > n / 2 and len(np.unique(problem.rows)) == size:
            whole[n_fits].append(i)  # rows of weight 0 cost less than a copy of the codes
        else:
            shared[n_fits, problem.rows.tobytes(), given].append(i)
    for n_fits, members in whole.items():
        yield _batch(codes_nm, problems, [members], n_fits, whole=True)
    alike: dict[tuple[int, bool, int, int], list[list[int]]] = defaultdict(list)
    for (n_fits, _, given), group in shared.items():
        # a few hundred rows of padding, or four times the rows, cost less than one more batch
        size = int(np.log2(max(len(problems[group[0]].rows), 256)) / 2)
        alike[n_fits, bool(given), len(group), size].append(group)
    for (n_fits, *_), groups in alike.items():
        longest = max(len(problems[group[0]].rows) for group in groups)
        at_once = max(1, GATHERED // (longest * width))
        for i in range(0, len(groups), at_once):
            yield _batch(codes_nm, problems, groups[i : i + at_once], n_fits, whole=False)


def _batch(
    codes_nm: Tensor, problems: Sequence[Problem], groups: list[list[int]], n_fits: int, whole: bool
) -> Batch:
    device, shape = codes_nm.device, (len(groups), len(groups[0]))
    members = [i for group in groups for i in group]
    n = len(codes_nm) if whole else max(len(problems[i].rows) for i in members)
    labels, fold = np.zeros((*shape, n), dtype=np.int64), np.full((*shape, n), -1, dtype=np.int64)
    clusters: list[Ints | None] = []
    for k, i in enumerate(members):
        problem, at = problems[i], divmod(k, shape[1])
        place = problem.rows if whole else np.arange(len(problem.rows))
        labels[at][place] = problem.labels
        tuned_apart = problem.validation_rows is not None
        fold[at][place] = n_fits if tuned_apart else _folds(problem, n_fits)
        cluster = None
        if problem.groups is not None and not tuned_apart:
            cluster = np.zeros(n, dtype=np.int64)
            cluster[place] = problem.groups
        clusters.append(cluster)
    labels_gpn, fold_gpn = torch.from_numpy(labels).to(device), torch.from_numpy(fold).to(device)
    if whole:
        codes = codes_nm[None]
        basis = Eigenbasis.of(codes)
    else:
        codes = _gather(codes_nm, [problems[group[0]].rows for group in groups], n)
        basis = Eigenbasis.of(codes, fold_gpn[:, 0] >= 0)
    judged, judged_labels, judge = codes, labels_gpn, fold_gpn
    if problems[members[0]].validation_rows is not None:
        judged, judged_labels, judge = _given(codes_nm, [[problems[i] for i in group] for group in groups])
    return Batch(members, clusters, basis, labels_gpn, fold_gpn, n_fits, judged, judged_labels, judge)


def _folds(problem: Problem, n_fits: int) -> Ints:
    """The fold that leaves each row out; where a fifth is held out, the other four become one."""
    n_folds = 5 if n_fits == 1 else n_fits
    return np.minimum(folds(problem.labels, n_folds, problem.groups, 0), n_fits)


def _given(codes_nm: Tensor, groups: list[list[Problem]]) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [G, v, M], labels and judging fit [G, P, v] of validation rows apart, all judged by fit 0."""
    rows = [group[0].validation_rows for group in groups]
    assert all(r is not None for r in rows)
    longest = max(len(r) for r in rows if r is not None)
    labels = np.zeros((len(groups), len(groups[0]), longest), dtype=np.int64)
    judge = np.full(labels.shape, -1, dtype=np.int64)
    for g, group in enumerate(groups):
        for p, problem in enumerate(group):
            assert problem.validation_labels is not None
            labels[g, p, : len(problem.validation_labels)] = problem.validation_labels
            judge[g, p, : len(problem.validation_labels)] = 0
    codes = _gather(codes_nm, [r for r in rows if r is not None], longest)
    return codes, torch.from_numpy(labels).to(codes_nm.device), torch.from_numpy(judge).to(codes_nm.device)


def _gather(codes_nm: Tensor, rows: list[Ints], n: int) -> Tensor:
    """Codes [G, n, M] of each group's rows, padded with zeros."""
    out = codes_nm.new_zeros(len(rows), n, codes_nm.shape[1])
    for place, r in zip(out, rows, strict=True):
        place[: len(r)] = codes_nm[torch.from_numpy(np.asarray(r)).to(codes_nm.device)]
    return out
