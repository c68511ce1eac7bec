"""Which rows: limits, shots, folds and held-out parts. All are functions of their arguments alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Ints
from monoeval.data.label_noise import share_of
from monoeval.errors import UsageError
from monoeval.keys import draw_seed

HELD_OUT = 0.3


def stratified_limit(labels: Ints, n: int) -> Ints:
    """At most `n` row numbers of `labels` [N], sorted; the rows for a smaller n are among those for a larger.

    Classes take turns, so counts are as equal as class sizes allow. Within a class the order is shuffled, as
    sources are often sorted by something (a writer, a camera). Raises UsageError where n < 1.
    """
    if n < 1:
        raise UsageError(f"A limit of {n} rows leaves nothing: choose 1 or more with --limit.")
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[np.random.default_rng(draw_seed("limit", int(label))).permutation(rows)] = np.arange(len(rows))
    return np.sort(np.lexsort((labels, turn))[:n])


def shots(
    labels: Ints, class_names: Sequence[str], shots: int, validation: int, draw: int, repeat: int = 0
) -> tuple[Ints, Ints]:
    """Rows of `shots` training and `validation` further rows of each class, both sorted.

    Training rows are the first of a permutation of the class and validation rows its last, so within one
    (draw, repeat) fewer shots are a subset of more, and validation rows are in no larger setting's training rows.
    Raises UsageError naming a class with fewer than shots + validation rows.
    """
    train, held = [], []
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        if len(rows) < shots + validation:
            raise UsageError(
                f"Class {name!r} has {len(rows)} training rows, and {shots} shots with {validation} validation "
                f"rows need {shots + validation}: add images, or ask for fewer shots."
            )
        rows = _shuffled(rows, name, draw, repeat)
        train.append(rows[:shots])
        held.append(rows[len(rows) - validation :])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held))


def share(labels: Ints, class_names: Sequence[str], share: float, draw: int, repeat: int = 0) -> Ints:
    """Rows, sorted, of floor(share · n) rows of each class of n rows, at least one.

    They are the first of the permutation that `shots` takes its rows from, so a smaller share is a subset of a
    larger one of the same (draw, repeat). A class without rows stays without.
    """
    classes = ((name, np.flatnonzero(labels == label)) for label, name in enumerate(class_names))
    taken = [_shuffled(rows, name, draw, repeat)[: max(1, share_of(share, len(rows)))] for name, rows in classes]
    return np.sort(np.concatenate(taken))


def long_tail(labels: Ints, class_names: Sequence[str], ratio: float, draw: int) -> Ints:
    """Rows, sorted, of which class number c of K has floor(n_max · ratio^(−c / (K − 1))) (Cui et al. 2019).

    The order of the classes is drawn. n_max is the largest number that all classes have the rows for: where they
    are of equal size, that of a class, so the head keeps all rows and a larger ratio takes a subset of a smaller
    one's; the total falls with the ratio. At ratio 1 all classes have as many rows as the smallest.
    Raises UsageError where the last class would be left without a row.
    """
    sizes = np.bincount(labels, minlength=len(class_names))
    order = sorted(range(len(class_names)), key=lambda c: draw_seed("long tail", class_names[c], draw))
    profile = float(ratio) ** (-np.arange(len(order)) / max(1, len(order) - 1))
    n_max = int((sizes[order] / profile).min() + 1e-9)
    counts = np.floor(n_max * profile + 1e-9).astype(np.int64)
    if not sizes.all():
        absent = class_names[int(np.argmin(sizes))]
        raise UsageError(f"Class {absent!r} has no training row to be imbalanced: add images, or raise --limit.")
    if not counts.all():
        raise UsageError(
            f"An imbalance of {ratio:g} leaves class {class_names[order[-1]]!r} without a training row, as the "
            f"largest has {n_max}: add images, or ask in a recipe for no more than the {sizes.min()} rows of the "
            f"smallest class, which go in every order: {{name: imbalance, ratios: [{sizes.min()}]}}."
        )
    taken = [
        _shuffled(np.flatnonzero(labels == c), class_names[c], draw)[:count]
        for c, count in zip(order, counts, strict=True)
    ]
    return np.sort(np.concatenate(taken))


def _shuffled(rows: Ints, class_name: str, draw: int, repeat: int = 0) -> Ints:
    """The rows of a class in the order in which they are taken."""
    return np.random.default_rng(draw_seed("shots", class_name, draw, repeat)).permutation(rows)


def folds(labels: Ints, n_folds: int, groups: Ints | None = None, seed: int = 0) -> NDArray[np.int64]:
    """The fold [N] of each row, 0 … n_folds − 1, with classes spread evenly.

    Rows of a group share a fold where there are at least as many groups as folds and no fold would be empty.
    A class may have fewer rows than there are folds. Raises UsageError where there are fewer rows than folds.
    """
    if not 2 <= n_folds <= len(labels):
        raise UsageError(f"{len(labels)} rows cannot be cut into {n_folds} folds: choose 2 to {len(labels)}.")
    if groups is not None and len(np.unique(groups)) >= n_folds:
        fold = _grouped(labels, n_folds, groups, seed)
        if np.bincount(fold, minlength=n_folds).all():
            return fold
    rng = np.random.default_rng(draw_seed("folds", seed))
    # Dealing the classes one after the other, without starting again, also keeps the folds of equal size.
    order = np.lexsort((rng.permutation(len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % n_folds
    return fold


def _grouped(labels: Ints, n_folds: int, groups: Ints, seed: int) -> NDArray[np.int64]:
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    # scikit-learn refuses where every class is smaller than n_folds; then only the groups are kept.
    strata = labels if np.bincount(labels).max() >= n_folds else np.zeros_like(labels)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=draw_seed("folds", seed) % 2**32)
    fold = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds is fine here
        for number, (_, rows) in enumerate(splitter.split(strata, strata, groups)):
            fold[rows] = number
    return fold


def held_out(labels: Ints, ids: NDArray[np.str_], groups: NDArray[np.str_] | None = None) -> tuple[Ints, Ints]:
    """Train and test rows, sorted, of a source without a test split: 30 % of each class by a hash of the id.

    A class keeps at least one training row; which rows are held out does not depend on their order. With `groups`
    [N], whole groups are held out, in the order of a hash of their names, each that keeps them at 30 % of all rows
    at most; of classes nothing is promised.
    """
    if groups is not None:
        names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        outside, room = [], HELD_OUT * len(groups)
        for one in np.argsort([draw_seed("held-out", str(name)) for name in names]):
            if sizes[one] <= room:
                outside.append(one)
                room -= sizes[one]
        is_test = np.isin(group, outside)
        return np.flatnonzero(~is_test), np.flatnonzero(is_test)
    train, test = [], []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort([draw_seed("held-out", str(name)) for name in ids[rows]])]
        count = min(round(HELD_OUT * len(rows)), len(rows) - 1)
        test.append(rows[:count])
        train.append(rows[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
