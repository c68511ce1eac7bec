"""Wrong training labels: which rows, which labels, and what came of it. Always drawn from the clean labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from monoeval.data.hierarchies import confusions
from monoeval.data.images import Ints
from monoeval.errors import UsageError, nearest
from monoeval.keys import draw_seed

NoiseKind = Literal["symmetric", "symmetric-inclusive", "asymmetric", "instance", "human"]
Drawn = Literal["symmetric", "symmetric-inclusive", "asymmetric"]


def symmetric(labels: Ints, n_classes: int, rate: float, draw: int, *, inclusive: bool = False) -> Ints:
    """Give exactly floor(rate · N) rows of `labels` [N] another class, each other class equally likely.

    With `inclusive` those rows are drawn from all classes, so about one in K of them keeps its label and the
    realised rate is about rate · (1 − 1/K). The rows are drawn without replacement from the clean labels, so no
    row is flipped twice. The result is a function of the arguments alone; rates of one draw have streams of their
    own and are not nested. Raises UsageError for a rate outside [0, 1] or fewer than two classes.
    """
    _check(rate, n_classes)
    noisy = np.array(labels, dtype=np.int64)
    count = share_of(rate, len(noisy))
    kind: Drawn = "symmetric-inclusive" if inclusive else "symmetric"
    rng = np.random.default_rng(draw_seed("label-noise", kind, float(rate), draw))
    rows = rng.choice(len(noisy), size=count, replace=False)
    steps = rng.integers(0 if inclusive else 1, n_classes, size=count)
    noisy[rows] = (noisy[rows] + steps) % n_classes
    return noisy


def asymmetric(labels: Ints, taken_for: Ints, rate: float, draw: int) -> Ints:
    """Give exactly floor(rate · n_c) rows of each class c the class `taken_for[c]`; −1: that class is left alone.

    `taken_for` is [K], see `confused`. Rows of a class are drawn without replacement, from a stream for each
    class. Raises UsageError for a rate outside [0, 1].
    """
    _check(rate, len(taken_for))
    noisy = np.array(labels, dtype=np.int64)
    for label in np.flatnonzero(taken_for >= 0):
        rows = np.flatnonzero(labels == label)
        rng = np.random.default_rng(draw_seed("label-noise", "asymmetric", float(rate), draw, int(label)))
        noisy[rng.choice(rows, size=share_of(rate, len(rows)), replace=False)] = taken_for[label]
    return noisy


def confused(class_names: tuple[str, ...], mapping: Mapping[str, str] | None, data: str) -> Ints:
    """The class [K] that each class is taken for, −1 where none is.

    `mapping` is class name → class name; None stands for the published ones of CIFAR-10 and CIFAR-100.
    Raises UsageError for classes that the data called `data` has not, a class mapped to itself, or no mapping.
    """
    chosen = confusions(class_names) if mapping is None else mapping
    if chosen is None:
        raise UsageError(
            f"Asymmetric label noise has no map for the classes of {data}: give one in a recipe, for example "
            f"{{name: label-noise, kinds: [asymmetric], map: {{{class_names[0]}: {class_names[1]}}}}}."
        )
    position = {name: i for i, name in enumerate(class_names)}
    if strangers := sorted({*chosen, *chosen.values()} - position.keys()):
        near = nearest(strangers[0], class_names)
        advice = f"did you mean {near!r}?" if near else f"its classes are {some(class_names)}."
        raise UsageError(f"The map of the label noise names {some(strangers)}, which {data} has not: {advice}")
    for name, other in chosen.items():
        if name == other:
            raise UsageError(f"The map of the label noise takes {name!r} for itself: name another class.")
    taken_for = np.full(len(class_names), -1, dtype=np.int64)
    for name, other in chosen.items():
        taken_for[position[name]] = position[other]
    return taken_for


def share_of(rate: float, n: int) -> int:
    """floor(rate · n) of the decimal that was typed: 0.29 · 100 is 28.999… in floating point."""
    return int(Fraction(str(float(rate))) * n)


def some(names: tuple[str, ...] | list[str]) -> str:
    """The first few of `names`, for a sentence."""
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def _check(rate: float, n_classes: int) -> None:
    if not 0 <= rate <= 1:
        raise UsageError(f"A label noise rate of {rate:g} is impossible: choose one from 0 to 1.")
    if n_classes < 2:
        raise UsageError(f"Label noise needs at least two classes, and there is {n_classes}.")


def label_signal(rate: float, n_classes: int, kind: Drawn = "symmetric") -> float:
    """How much likelier a row of an affected class has its true class than the likeliest wrong one.

    Symmetric noise: (1 − r) − r/(K − 1); drawn from all classes: 1 − r; asymmetric: 1 − 2r, as all wrong labels
    of a class are one class. 0 is pure noise and below 0 labels point away from the truth: such levels are
    negative controls. Other kinds have no rate that decides it: see `Transitions.signal`.
    """
    wrong = {"symmetric": rate / (n_classes - 1), "symmetric-inclusive": 0.0, "asymmetric": rate}[kind]
    return round((1 - rate) - wrong, 12)  # exactly 0 where only rounding keeps it above


@dataclass(frozen=True)
class Transitions:
    """How often a row of a true class was given a class; pairs that never happened are left out."""

    true: Ints  # [T]
    given: Ints  # [T]
    count: Ints  # [T]

    @classmethod
    def of(cls, clean: Ints, noisy: Ints) -> "Transitions":
        """Count pairs of labels [N]; memory is that of the rows, however many classes there are."""
        n_classes = int(max(clean.max(initial=0), noisy.max(initial=0))) + 1
        pairs, count = np.unique(clean * n_classes + noisy, return_counts=True)
        return cls(pairs // n_classes, pairs % n_classes, count.astype(np.int64))

    @property
    def rate(self) -> float:
        """The share of changed labels."""
        return float(self.count[self.true != self.given].sum() / max(self.count.sum(), 1))

    @property
    def signal(self) -> float:
        """How much likelier a row has its true class than the commonest wrong label of that class, over all rows.

        Σ_c (n_cc − max_{j≠c} n_cj) / N of the counts themselves. It is what `label_signal` is in expectation
        where all classes are affected alike, but for the luck of the largest of few counts, which lowers it.
        """
        kept, wrong = (np.zeros(int(self.true.max(initial=0)) + 1, dtype=np.int64) for _ in range(2))
        same = self.true == self.given
        kept[self.true[same]] = self.count[same]
        np.maximum.at(wrong, self.true[~same], self.count[~same])
        return float((kept - wrong).sum() / max(self.count.sum(), 1))
