"""Which problems are solved together: those on most rows share them, those on few form padded groups."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monoeval.data.images import Ints
from monoeval.data.splits import folds
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import at_once
from monoeval.probes.problem import Problem
from monoeval.probes.rows import FEWEST_ROWS, Rows, RowSpace, all_rows

MANY_ROWS = 5000
"""From here on one stratified fifth is held out: its standard error is small, and folds would cost five fits."""
GATHERED = 2**26
"""Numbers of codes that one problem on few rows may copy (256 MB)."""
TOGETHER = 2**22
"""Numbers of coordinates of the problems that go on together. On 1,300 problems of 40 rows of 512 features and as
many of 160, ten classes, sixteen times as many took 2.8 GB in place of 1.1, and were no faster."""


@dataclass(frozen=True)
class Batch:
    """P problems on each of G groups of n rows; `members` are their indices, group after group."""

    members: list[int]
    clusters: list[Ints | None]  # [n] which rows belong together, where a problem has groups
    rows: Rows
    labels: Tensor  # [G, P, n] int64
    judged_by: Tensor  # [G, P, n] int64, labels that left out rows are scored on
    weights: Tensor  # [G, P, n] float32 of the fit that is kept; 0 for rows that are not fitted
    fold: Tensor  # [G, P, n] the fit that leaves a row out and is scored on it; `n_fits`: none does; -1: unused
    n_fits: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.shape[0], self.labels.shape[1]

    def by_group(self, values: Tensor) -> Tensor:
        """Values [G·P, ...] as [G, P, ...]."""
        return values.view(*self.shape, *values.shape[1:])

    def fold_labels(self) -> Tensor:
        """Labels [G, P·F, n] of the fits that leave one fold out: what they are fitted on, and judged by."""
        fits = torch.arange(self.n_fits, device=self.fold.device)[:, None]
        left_out = self.fold[:, :, None] == fits
        return torch.where(left_out, self.judged_by[:, :, None], self.labels[:, :, None]).flatten(1, 2)

    def fold_weights(self) -> Tensor:
        """Weights [G, P·F, n] of the fits that leave one fold out."""
        fits = torch.arange(self.n_fits, device=self.fold.device)[:, None]
        return (self.weights[:, :, None] * (self.fold[:, :, None] != fits)).flatten(1, 2)


def batches(
    codes: TrainingCodes,
    problems: Sequence[Problem],
    n_classes: int,
    n_folds: int,
    balanced: bool,
    *,
    copies: int = 1,
) -> Iterator[Batch]:
    """Yield `problems` on codes [N, M] in few batches that fit into memory, each fitted `copies` times at once.

    With `n_folds` 0 nothing is held out, and validation rows are left aside: `n_fits` is then 0.
    """
    if not n_folds:
        problems = [Problem(problem.rows, problem.labels) for problem in problems]
    n, width = len(codes), codes.width
    whole: dict[int, list[int]] = defaultdict(list)
    shared: dict[tuple[int, bytes, bytes], list[int]] = defaultdict(list)
    for i, problem in enumerate(problems):
        size, validation = len(problem.rows), problem.validation_rows
        given = b"" if validation is None else validation.tobytes()
        n_fits = min(n_folds, 1 if given or size >= MANY_ROWS else size)
        once = len(np.unique(problem.rows)) == size
        if not given and once and (size > n / 2 or size * width > GATHERED):
            whole[n_fits].append(i)  # rows of weight 0 cost less than a copy of the codes
        else:
            shared[n_fits, problem.rows.tobytes(), given].append(i)
    if whole:
        rows = all_rows(codes)
        for n_fits, members in whole.items():
            size = max(1, at_once(rows.variances_gd.shape[1], n_classes) // max(n_fits, copies))
            for i in range(0, len(members), size):
                yield _batch(rows, [np.arange(n)], problems, [members[i : i + size]], n_fits, balanced, whole=True)
    alike: dict[tuple[int, bool, int, int], list[list[int]]] = defaultdict(list)
    for (n_fits, _, given), group in shared.items():
        first = problems[group[0]]
        # a few dozen rows of padding, or twice the rows, cost less than one more batch
        step = max(6, (len(first.rows) - 1).bit_length())
        size = max(1, at_once(_numbers(len(first.rows), width), n_classes) // max(n_fits, copies))
        for i in range(0, len(group), size):
            part = group[i : i + size]
            alike[n_fits, bool(given), len(part), step].append(part)
    for (n_fits, _, size, _), groups in alike.items():
        longest = max(len(problems[group[0]].rows) for group in groups)
        fitting = at_once(_numbers(longest, width), n_classes) // (max(n_fits, copies) * size)
        together = max(1, min(TOGETHER // (longest * min(longest, width)), fitting))
        for i in range(0, len(groups), together):
            some = groups[i : i + together]
            places = [problems[group[0]].places for group in some]
            rows = _row_space(codes, places, [len(problems[group[0]].rows) for group in some])
            yield _batch(rows, places, problems, some, n_fits, balanced, whole=False)


def _numbers(n: int, width: int) -> int:
    """Numbers a class of a problem on `n` rows: coordinates or, where these are few, logits of its rows."""
    return min(n, max(width, FEWEST_ROWS))


def _row_space(codes: TrainingCodes, places: list[Ints], fitted: list[int]) -> RowSpace:
    return RowSpace.of(codes, [torch.from_numpy(np.asarray(p)).to(codes.device) for p in places], fitted)


def _batch(
    rows: Rows,
    places: list[Ints],
    problems: Sequence[Problem],
    groups: list[list[int]],
    n_fits: int,
    balanced: bool,
    whole: bool,
) -> Batch:
    """`whole`: the one group holds every row of the codes, in order."""
    members = [i for group in groups for i in group]
    shape = (len(groups), len(groups[0]), max(map(len, places)))
    labels, fold = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    judged_by = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    clusters: list[Ints | None] = []
    for k, i in enumerate(members):
        problem, at = problems[i], divmod(k, shape[1])
        given = problem.validation_rows
        at_rows = problem.rows if whole else np.arange(len(problem.rows))
        labels[at][at_rows] = problem.labels
        judged_by[at][at_rows] = problem.labels if problem.selection_labels is None else problem.selection_labels
        weights[at][at_rows] = _balance(problem.labels) if balanced else 1.0
        if n_fits:
            fold[at][at_rows] = n_fits if given is not None else _folds(problem, n_fits)
        cluster = None
        if given is not None:
            assert problem.validation_labels is not None
            held = slice(len(problem.rows), len(problem.rows) + len(given))
            labels[at][held], fold[at][held] = problem.validation_labels, 0
            judged_by[at][held] = problem.validation_labels
        elif problem.groups is not None:
            cluster = np.zeros(shape[2], dtype=np.int64)
            cluster[at_rows] = problem.groups
        clusters.append(cluster)
    arrays = (labels, judged_by, weights, fold)
    labels_gpn, judged_gpn, weights_gpn, fold_gpn = (torch.from_numpy(v).to(rows.device) for v in arrays)
    return Batch(members, clusters, rows, labels_gpn, judged_gpn, weights_gpn, fold_gpn, n_fits)


def _balance(labels: Ints) -> NDArray[np.float64]:
    """Weights that give every class the same total."""
    counts = np.bincount(labels)
    weights: NDArray[np.float64] = 1.0 / counts[labels]
    return weights


def _folds(problem: Problem, n_fits: int) -> Ints:
    """The fold that leaves each row out; where a fifth is held out, the other four become one."""
    n_folds = 5 if n_fits == 1 else n_fits
    return np.minimum(folds(problem.labels, n_folds, problem.groups, 0), n_fits)
